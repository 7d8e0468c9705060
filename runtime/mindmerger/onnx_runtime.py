"""ONNX Runtime, imported so that it sends nothing.

Since 1.29 its official builds for Linux and macOS report to Microsoft over HTTPS, by native code that no guard of Python's
sockets sees: processor, name and hashes of the model, times; and they keep an identifier of the machine in the user's cache
folder. It is off where ORT_DISABLE_TELEMETRY was set before the library is loaded. docs/offline.md says how that is proved.
"""

from __future__ import annotations

import os
from typing import Any


def onnx_runtime() -> Any:
    """The module onnxruntime. Nothing else of the runtime imports it."""
    # whatever it was set to: what is asked here stays here. Children inherit it
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    # where the program around us had imported it before, and for builds that do not read the variable
    onnxruntime.disable_telemetry_events()
    return onnxruntime
