"""Find a bundle by path or name, check its files, and say where each of them lies.

Knows nothing about what is in the files; that is for the tokenizer, the graph and the LLM.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from mindmerger import cache
from mindmerger.errors import BundleError
from mindmerger.i18n import _
from mindmerger.manifest import MANIFEST_NAME, FileInfo, Manifest, read_manifest
from mindmerger.packages import find_package_file

DEFAULT_NAME = "mindmerger"
ENVIRONMENT = "MINDMERGER_BUNDLE"
BESIDE_NAME = "bundle"
"""The folder beside a frozen application's executable that is its bundle."""


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are all there and have the hashes that the manifest names."""

    folder: Path
    manifest: Manifest
    paths: dict[str, Path]

    @property
    def merger(self) -> Path:
        return self.paths["merger"]

    @property
    def tokenizer(self) -> Path:
        return self.paths["tokenizer"]

    def llm(self) -> Path:
        """The LLM's GGUF; made out of base and adapter on the first call on this machine if the manifest says so."""
        if self.manifest.bake is None:
            return self.paths["llm"]
        from mindmerger.bake import baked  # brings gguf: not needed by bundles that carry their LLM

        base, adapter = self.manifest.file("llm-base"), self.manifest.file("adapter")
        return baked(
            self.paths["llm-base"], self.paths["adapter"], self.manifest.bake.type, base.sha256, adapter.sha256
        )


def open_bundle(bundle: str | os.PathLike[str] | None = None) -> Bundle:
    """Resolve `bundle`, read its manifest and check every file: existence, size, sha256, and once whether llama.cpp can bear
    the GGUF. A file with a remembered sha256 and the stat it had then is not read."""
    folder = resolve(bundle)
    manifest = read_manifest(folder)
    paths: dict[str, Path] = {}
    for entry in manifest.files:
        path = _locate(folder, entry)
        what = _("the bundle's file {file}").format(file=repr(entry.path))
        inspect = _check_llm if entry.role in ("llm", "llm-base") else None
        cache.check_file(path, entry.bytes, entry.sha256, what, inspect)
        # several files may be `merger-data`; the graph finds them by name beside itself
        paths.setdefault(entry.role, path)
    return Bundle(folder, manifest, paths)


def resolve(bundle: str | os.PathLike[str] | None = None) -> Path:
    """The folder of a bundle: a path, or the name of one that the installation carries.

    Without an argument, the environment variable MINDMERGER_BUNDLE, then the folder `bundle` beside a frozen application's
    executable, then the default bundle.
    """
    if bundle is None:
        bundle = os.environ.get(ENVIRONMENT) or _beside_executable() or DEFAULT_NAME
    text = os.fspath(bundle)
    if not text or "\0" in text:
        raise BundleError(_("the name of the bundle is empty or has a NUL character: give a folder or a name"))
    path = Path(text)
    # an OSError is a name that this file system cannot even ask about: too long, or of forbidden characters
    with contextlib.suppress(OSError):
        if isinstance(bundle, str) and path.name == text and text not in (".", ".."):
            # A bare word is a name first, so that a stray folder in the working directory cannot replace the default.
            for models in model_folders():
                folder = models / text / "bundle"
                if (folder / MANIFEST_NAME).is_file():
                    return folder
        if path.is_dir():
            return path
        if path.is_file() and path.suffix == ".mmb":
            # llama.cpp maps files by their path, so a GGUF inside another file is out of its reach.
            raise BundleError(f"{path} is a packed bundle: make a folder of it with mm-export unpack, and give that")
    names = bundle_names()
    if not names and _is_frozen():
        raise BundleError(
            _(
                "there is no bundle {name}: put the folder of one beside this program as {folder}, or name it in {variable}"
            ).format(name=repr(text[:200]), folder=Path(sys.executable).parent / BESIDE_NAME, variable=ENVIRONMENT)
        )
    if not names:
        raise BundleError(
            _("there is no bundle {name}: give the folder of a bundle (this installation carries none)").format(
                name=repr(text[:200])
            )
        )
    raise BundleError(
        _("there is no bundle {name}: give the folder of a bundle or a name (the names are {names})").format(
            name=repr(text[:200]), names=", ".join(names)
        )
    )


def bundle_names() -> list[str]:
    """The names of the bundles that this installation carries."""
    found = {path.parent.parent.name for models in model_folders() for path in models.glob(f"*/bundle/{MANIFEST_NAME}")}
    return sorted(found)


def model_folders() -> list[Path]:
    """Where bundles with names live: the installed `mindmerger_models`, or `models/` of a source checkout."""
    try:
        spec = importlib.util.find_spec("mindmerger_models")
    except (ImportError, ValueError):
        spec = None
    folders = [Path(place) for place in (spec.submodule_search_locations or [])] if spec is not None else []
    if _is_frozen():
        return folders  # what is two folders above a frozen module is nobody's checkout
    checkout = Path(__file__).resolve().parents[2] / "models"
    if not folders and checkout.is_dir():
        folders.append(checkout)
    return folders


def _is_frozen() -> bool:
    return bool(getattr(sys, "frozen", False))  # set by PyInstaller and cx_Freeze


def _beside_executable() -> Path | None:
    """The bundle that was put beside a frozen application; None where there is none, or the application is not frozen."""
    folder = Path(sys.executable).parent / BESIDE_NAME
    return folder if _is_frozen() and (folder / MANIFEST_NAME).is_file() else None


def _check_llm(path: Path) -> None:
    from mindmerger.gguf_check import check_llm  # brings numpy: not needed for files that are remembered

    check_llm(path)


def _locate(folder: Path, entry: FileInfo) -> Path:
    if entry.package is not None:
        return find_package_file(entry.package, entry.path)
    return folder.joinpath(*entry.path.split("/"))
