"""llama-cpp-python's class Llama brings huggingface_hub, which saves tensors of torch where that is installed.

An application that imports one of these itself keeps it.
"""

from __future__ import annotations

excludedimports = ["safetensors", "tensorboard", "tensorboardX", "torch", "transformers"]
