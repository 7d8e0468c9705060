"""MindMerger Edge: ask a small English reasoning LLM in any language, on your own machine, offline.

    import mindmerger

    with mindmerger.load() as model:
        for chunk in (stream := model.generate("¿Cuánto es 15 + 27?")):
            print(chunk, end="", flush=True)
        print(stream.result.answer)

The names below are the public API. They are imported when first used: `import mindmerger` itself loads nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mindmerger.batch import BatchItem
    from mindmerger.errors import BundleError, InputError, MindMergerError, ModelError
    from mindmerger.generation import Generation, GenerationStream, Timings
    from mindmerger.loading import load
    from mindmerger.manifest import Manifest, read_manifest
    from mindmerger.model import MergedModel

    __version__: str

_HOMES = {
    "BatchItem": "batch",
    "BundleError": "errors",
    "Generation": "generation",
    "GenerationStream": "generation",
    "InputError": "errors",
    "Manifest": "manifest",
    "MergedModel": "model",
    "MindMergerError": "errors",
    "ModelError": "errors",
    "Timings": "generation",
    "load": "loading",
    "read_manifest": "manifest",
}

__all__ = [
    "BatchItem",
    "BundleError",
    "Generation",
    "GenerationStream",
    "InputError",
    "Manifest",
    "MergedModel",
    "MindMergerError",
    "ModelError",
    "Timings",
    "load",
    "read_manifest",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        try:
            return metadata.version("mindmerger")
        except metadata.PackageNotFoundError:
            return "0+source"  # run from a checkout that is not installed
    if name in _HOMES:
        import importlib

        if name == "load":
            from mindmerger.limits import check_libraries

            check_libraries()
        value = getattr(importlib.import_module(f"mindmerger.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'mindmerger' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
