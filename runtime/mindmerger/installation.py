"""What is right and wrong with an installation: packages, native libraries, and what they use of the processor.

Native code is asked in a process of its own (`mindmerger.probe`). Knows nothing about bundles.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
from collections.abc import Iterator

from mindmerger.child import Child
from mindmerger.errors import MindMergerError, ModelError
from mindmerger.findings import REINSTALL, Finding, from_error
from mindmerger.i18n import _
from mindmerger.machine import cpu_features, processor_name

PACKAGES = ("numpy", "onnxruntime", "llama-cpp-python", "tokenizers", "gguf", "click")
# What makes a prompt visibly faster where a build uses it; the rest is a few per cent.
_WORTH_IT = {"AVX", "AVX2", "F16C", "FMA", "AVX512", "NEON", "DOTPROD", "MATMUL_INT8"}


def packages() -> Iterator[Finding]:
    """Versions of Python and of the packages that the runtime needs."""
    import mindmerger

    yield Finding(
        "mindmerger", "ok", f"{mindmerger.__version__}, Python {platform.python_version()}, {platform.platform()}"
    )
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            if name == "onnxruntime":  # the build for CUDA is the same module under another name
                with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                    found.append(f"onnxruntime-gpu {importlib.metadata.version('onnxruntime-gpu')}")
                    continue
            yield Finding(
                "packages",
                "problem",
                _("{name} is not installed").format(name=name),
                f"pip install {name}",
                ModelError.exit_code,
            )
    yield Finding("packages", "ok", ", ".join(found))


def libraries() -> Iterator[Finding]:
    """The native libraries: whether they run here, what they use of the processor, what else they could use."""
    with Child("mindmerger.probe", what=_("loading {library}").format(library="llama.cpp")) as child:
        try:
            llama = child.ask(do="llama")
        except MindMergerError as error:
            yield from_error("processor", error, f"{REINSTALL} llama-cpp-python")
        else:
            yield processor(set(llama["features"]))
            if llama["gpu"]:
                yield Finding("GPU for llama.cpp", "ok", _("this build can put layers of the LLM on a GPU"))
            else:
                yield Finding("GPU for llama.cpp", "ok", _("none: this build runs on the CPU, which every bundle can"))
    with Child("mindmerger.probe", what=_("loading {library}").format(library="ONNX Runtime")) as child:
        try:
            providers = child.ask(do="onnxruntime")["providers"]
        except MindMergerError as error:
            yield from_error("ONNX Runtime", error, f"{REINSTALL} onnxruntime")
        else:
            if "CPUExecutionProvider" in providers:
                yield Finding("ONNX Runtime", "ok", _("providers: {names}").format(names=", ".join(providers)))
            else:
                yield Finding(
                    "ONNX Runtime",
                    "problem",
                    _("it has no provider for the CPU: {names}").format(names=", ".join(providers) or "-"),
                    f"{REINSTALL} onnxruntime",
                    ModelError.exit_code,
                )


def processor(built_with: set[str]) -> Finding:
    """What llama.cpp was built with against what the processor has, both in ggml's names."""
    features = cpu_features()
    name = f"{processor_name()} ({platform.machine()})"
    if not features.asked:
        return Finding(
            "processor",
            "warning",
            _("{name}: the system does not say what it can").format(name=name),
            _("if llama.cpp ends with an illegal instruction, build it on this machine"),
        )
    lacking = sorted((built_with & features.asked) - features.present)
    if lacking:
        return Finding(
            "processor",
            "problem",
            _("{name} lacks {features}, which llama.cpp was built with: it may end without a word").format(
                name=name, features=", ".join(lacking)
            ),
            f"CMAKE_ARGS=-DGGML_NATIVE=ON {REINSTALL} --no-binary llama-cpp-python llama-cpp-python",
            ModelError.exit_code,
        )
    unused = sorted((features.present & _WORTH_IT) - built_with)
    used = ", ".join(sorted(built_with & features.present)) or _("no vector instructions")
    if unused:
        return Finding(
            "processor",
            "warning",
            _("{name}: llama.cpp uses {used} and not {unused}").format(name=name, used=used, unused=", ".join(unused)),
            _("faster: {command}").format(
                command=f"CMAKE_ARGS=-DGGML_NATIVE=ON {REINSTALL} --no-binary llama-cpp-python llama-cpp-python"
            ),
        )
    return Finding("processor", "ok", _("{name}: llama.cpp uses {used}").format(name=name, used=used))
