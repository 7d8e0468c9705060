"""llama-cpp-python's class Llama brings huggingface_hub, which can save torch's tensors where torch is installed.

An application that imports one of these itself keeps it.
"""

from __future__ import annotations

excludedimports = ["tensorboard", "tensorboardX", "torch", "transformers"]
