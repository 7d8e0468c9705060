"""The offline kit: one folder with everything that a machine without a network needs to install the runtime and answer.

    mm-offline-kit --bundle my-bundle --out kit

It is made where a network is and where bundles are made, so it belongs to the export; what it makes installs the runtime
alone. Nothing here imports torch.
"""
