"""What PyInstaller cannot see by reading mindmerger: modules that are imported by name, catalogues, native libraries, licences.

No weights: a bundle lies beside the executable (docs/embedding.md).
"""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError

from PyInstaller.utils.hooks import collect_data_files, collect_dynamic_libs, copy_metadata

from mindmerger import _HOMES

# The public names are imported when they are first used; llama.cpp's bindings without the package's own __init__ (llama.py).
hiddenimports = [*sorted({f"mindmerger.{module}" for module in _HOMES.values()}), "llama_cpp.llama_cpp", "gguf"]

# The runtime imports none of these; an environment for training has them all, gigabytes.
excludedimports = ["accelerate", "mindmerger_export", "mindmerger_train", "onnx", "peft", "torch", "transformers"]

# libmtmd is for pictures. The others keep their folder, where the bindings look for them.
binaries = [pair for pair in collect_dynamic_libs("llama_cpp") if "mtmd" not in pair[0]]
binaries += collect_dynamic_libs("onnxruntime")

datas = collect_data_files("mindmerger", includes=["locale/*/LC_MESSAGES/*.mo"])
# Licences go where the code goes. Most wheels keep theirs with their metadata, which also say the version.
datas += collect_data_files("onnxruntime", includes=["LICENSE", "ThirdPartyNotices.txt"])
for _name in ("mindmerger", "gguf", "llama-cpp-python", "numpy", "onnxruntime", "onnxruntime-gpu", "tokenizers"):
    # one of the two onnxruntimes is not there, nor is mindmerger where a checkout is frozen without being installed
    with suppress(PackageNotFoundError):
        datas += copy_metadata(_name)
