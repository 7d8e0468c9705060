"""A bundle that needs nothing but its own folder: `mm-export standalone`.

A bundle may name files that a Python package ships, and an LLM that is prepared at first use. An application that is shipped
without Python's packages can look neither up. Here everything is put into one folder, and the manifest says so. What the LLM
computes is the same: it is the very file that the runtime would have prepared. torch is not needed.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from mindmerger.bundle import open_bundle
from mindmerger.errors import BundleError, ModelError
from mindmerger.machine import free_disk
from mindmerger.manifest import MANIFEST_NAME, FileInfo
from mindmerger.packages import find_package_file
from mindmerger_export.report import HTML_FILE, JSON_FILE
from mindmerger_export.talk import Talk
from mindmerger_export.workspace import building, check_free, publish

LLM_NAME = "llm.gguf"
_BLOCK = 1 << 20
_SPARE = 32 * _BLOCK


def make_standalone(bundle: str, out: Path, *, force: bool = False, talk: Talk | None = None) -> Path:
    """Copy a bundle into `out` with all that it needs; returns the folder.

    Raises InputError when `out` exists, BundleError for a damaged bundle or a missing package, ModelError without space.
    """
    talk = talk or Talk()
    target = out.absolute()
    check_free(target, force)
    opened = open_bundle(bundle)
    manifest = opened.manifest
    if manifest.bake is not None:
        talk("preparing the LLM")
    llm = opened.llm()
    own = [entry for entry in manifest.files if entry.role not in ("llm", "llm-base", "adapter")]
    sources = {entry.path: opened.folder.joinpath(*entry.path.split("/")) for entry in own if entry.package is None}
    sources |= {entry.path: find_package_file(entry.package, entry.path) for entry in own if entry.package is not None}
    total = llm.stat().st_size + sum(entry.bytes for entry in own)
    free = free_disk(target.parent)
    if free is not None and free < total + _SPARE:
        raise ModelError(
            f"{target} needs {(total + _SPARE) >> 20} MB and {free >> 20} are free: make room, or give another DIR"
        )
    talk(f"copying {len(own) + 1} files")
    with building(target) as folder:
        entries = []
        for entry in own:
            copied = _copy(sources[entry.path], folder, entry.path, entry.role)
            if copied.sha256 != entry.sha256:
                raise BundleError(f"{sources[entry.path]} changed while it was copied: try again")
            entries.append(copied)
            talk.at(sum(one.bytes for one in entries) // _BLOCK, total // _BLOCK)
        entries.append(_copy(llm, folder, LLM_NAME, "llm"))
        for name in (JSON_FILE, HTML_FILE):
            if (opened.folder / name).is_file():
                _copy(opened.folder / name, folder, name, "report")
        written = replace(manifest, files=tuple(entries), bake=None)
        (folder / MANIFEST_NAME).write_text(written.to_json(), encoding="utf-8")
        publish(folder, target)
    return target


def _copy(source: Path, folder: Path, name: str, role: str) -> FileInfo:
    """Copy a file, hashing what is written."""
    path = folder.joinpath(*name.split("/"))
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with source.open("rb") as data, path.open("xb") as out:
        while block := data.read(_BLOCK):
            digest.update(block)
            out.write(block)
    return FileInfo(role, name, path.stat().st_size, digest.hexdigest(), None)
