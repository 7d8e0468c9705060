"""The user's cache folder, and files that were checked by their hash.

A file whose sha256 was once computed in full is remembered with its stat. As long as the stat stays the same, the file
is taken as unchanged; any difference (size, time, inode) hashes it again. That makes the second start quick and still
finds truncated and altered files. The cache is a convenience: where it cannot be written, everything works, slower.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mindmerger.errors import BundleError
from mindmerger.i18n import _

# A file written within this time before it was hashed could change again without its time stamp changing.
_RACY_NS = 100_000_000
_BLOCK = 1 << 20


def cache_folders() -> list[Path]:
    """Folders to keep things in, best first. None of them needs to exist or to be writable."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        home = Path(base) if base else Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        home = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME")
        # the XDG rule: a relative path is to be ignored
        home = Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache"
    user = str(os.getuid()) if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    return [home / "mindmerger", Path(tempfile.gettempdir()) / f"mindmerger-{user}"]


def writable_folder(name: str) -> Path | None:
    """A folder `name` in the first cache folder that can be written to, made if needed; None when there is none."""
    for base in cache_folders():
        folder = base / name
        try:
            base.mkdir(parents=True, exist_ok=True, mode=0o700)
            # The temporary folder is everybody's: what another user put there is not ours to load.
            if hasattr(os, "getuid") and base.stat().st_uid not in (os.getuid(), 0):
                continue
            folder.mkdir(exist_ok=True, mode=0o700)
            probe = folder / f".probe-{secrets.token_hex(4)}"
            probe.touch()
            probe.unlink()
        except OSError:
            continue
        return folder
    return None


def sha256_of(path: Path) -> str:
    """The sha256 of a file, read in blocks (hashlib lets other threads run meanwhile)."""
    digest = hashlib.sha256()
    buffer = bytearray(_BLOCK)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()


def check_file(path: Path, size: int, sha256: str, what: str, inspect: Callable[[Path], None] | None = None) -> None:
    """Raise BundleError unless `path` has this size and hash. `what` names the file in the message.

    `inspect` looks into a file that is not remembered, and raises BundleError where it is not what it should be.
    """
    try:
        stat = path.stat()
        if not path.is_file():
            raise BundleError(
                _("{what} ({path}) is not a file: copy, install or export it again").format(what=what, path=path)
            )
        if stat.st_size != size:
            raise BundleError(
                _(
                    "{what} ({path}) has {found} bytes instead of {size}, it is damaged: copy, install or export "
                    "it again"
                ).format(what=what, path=path, found=stat.st_size, size=size)
            )
        if _remembered(path, stat) == sha256:
            return
        found = sha256_of(path)
    except FileNotFoundError:
        raise BundleError(
            _("{what} ({path}) is missing: copy, install or export it again").format(what=what, path=path)
        ) from None
    except OSError as error:
        raise BundleError(
            _("{what} ({path}) cannot be read ({reason}): check its permissions").format(
                what=what, path=path, reason=error.strerror
            )
        ) from None
    if found != sha256:
        raise BundleError(
            _(
                "{what} ({path}) does not have the expected sha256, it is damaged: copy, install or export it again"
            ).format(what=what, path=path)
        )
    if inspect is not None:
        inspect(path)
    if time.time_ns() - stat.st_mtime_ns > _RACY_NS:
        remember(path, sha256, stat)


def remember(path: Path, sha256: str, stat: os.stat_result) -> None:
    """Note that `path`, with this stat, has this hash. Never fails: the note is only a convenience."""
    folder = writable_folder("checked")
    if folder is None:
        return
    note = {**_identity(path, stat), "sha256": sha256}
    temporary = folder / f".{secrets.token_hex(8)}"
    try:
        temporary.write_text(json.dumps(note), encoding="utf-8")
        temporary.replace(folder / _note_name(path))
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _remembered(path: Path, stat: os.stat_result) -> str | None:
    for base in cache_folders():
        try:
            note = json.loads((base / "checked" / _note_name(path)).read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(note, dict) and all(note.get(key) == value for key, value in _identity(path, stat).items()):
            return str(note.get("sha256"))
    return None


def _identity(path: Path, stat: os.stat_result) -> dict[str, str | int]:
    return {
        "path": str(path.absolute()),
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        # ctime too: tools that copy can set mtime back, none can set ctime
        "ctime_ns": stat.st_ctime_ns,
        "inode": stat.st_ino,
    }


def _note_name(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32] + ".json"
