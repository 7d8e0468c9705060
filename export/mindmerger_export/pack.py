"""A bundle as one file, `.mmb`: an uncompressed zip whose every file begins at a page, and back again.

Any zip program reads it. Stored, not compressed: weights do not shrink, and what lies as it is could be mapped where it lies
(llama.cpp takes paths, so today a packed bundle is unpacked first). A file from elsewhere is not trusted: every name, size,
flag and hash is checked before the folder gets its name. What this module does not know: what is in a bundle's files.
"""

from __future__ import annotations

import hashlib
import secrets
import stat
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mindmerger import cache
from mindmerger.bundle import resolve
from mindmerger.errors import BundleError, InputError, ModelError
from mindmerger.manifest import MANIFEST_NAME, FileInfo, Manifest, read_manifest
from mindmerger.manifest_rules import is_inside
from mindmerger_export.report import HTML_FILE, JSON_FILE
from mindmerger_export.space import check_disk
from mindmerger_export.talk import Talk
from mindmerger_export.workspace import building, check_free, publish

SUFFIX = ".mmb"
ALIGNMENT = 4096
_BESIDE = (JSON_FILE, HTML_FILE)
# Android's zipalign pads so; other readers skip extra fields that they do not know.
_PADDING_ID, _PADDING_HEADER = 0xD935, 6
_LOCAL_HEADER = 30
_BLOCK = 1 << 20
_EPOCH = (1980, 1, 1, 0, 0, 0)
# Text beside the weights; a manifest or report beyond is none.
_MOST_TEXT = 64 * 1024 * 1024


def pack(bundle: str, file: Path | None = None, *, force: bool = False, talk: Talk | None = None) -> Path:
    """Write a bundle as one file; returns its path (default: its name with `.mmb`, here).

    Every file is read through its hash, so a damaged bundle is not packed. Raises InputError when `file` exists, BundleError
    for a damaged bundle, ModelError without space.
    """
    talk = talk or Talk()
    folder = resolve(bundle)
    manifest = read_manifest(folder)
    target = (file or Path(f"{manifest.name}{SUFFIX}")).absolute()
    if target.exists() and not force:
        raise InputError(f"{target} exists: give another FILE, or --force to replace it")
    if target.is_dir():
        raise InputError(f"{target} is a folder: give the name of a file")
    own = sorted((entry for entry in manifest.files if entry.package is None), key=lambda entry: entry.path)
    names = [MANIFEST_NAME, *(name for name in _BESIDE if (folder / name).is_file()), *(entry.path for entry in own)]
    talk(f"checking the files of {folder}")
    for entry in own:
        path = folder.joinpath(*entry.path.split("/"))
        cache.check_file(path, entry.bytes, entry.sha256, f"the bundle's file {entry.path!r}")
    total = sum((folder / name).stat().st_size for name in names)
    check_disk(total, target.parent, "the packed bundle")
    talk(f"packing {len(names)} files")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        with zipfile.ZipFile(temporary, "x", zipfile.ZIP_STORED) as archive:
            done = 0
            for name in names:
                for count in _store(archive, folder.joinpath(*name.split("/")), name):
                    done += count
                    talk.at(done // _BLOCK, total // _BLOCK)
        temporary.replace(target)
    except OSError as error:
        raise ModelError(
            f"{target} cannot be written ({error.strerror or error}): check space and permissions"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _store(archive: zipfile.ZipFile, path: Path, name: str) -> Iterator[int]:
    """Add one file, its data at a multiple of `ALIGNMENT`; yields the bytes of each block."""
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.create_system, entry.external_attr = 3, (stat.S_IFREG | 0o644) << 16
    entry.file_size = path.stat().st_size
    # Always the long form, so that the header's length does not depend on a guess of zipfile's.
    begin = archive.start_dir + _LOCAL_HEADER + len(name.encode()) + struct.calcsize("<HHQQ") + _PADDING_HEADER
    padding = -begin % ALIGNMENT
    entry.extra = struct.pack("<HHH", _PADDING_ID, 2 + padding, ALIGNMENT) + bytes(padding)
    with archive.open(entry, "w", force_zip64=True) as out, path.open("rb") as data:
        while block := data.read(_BLOCK):
            out.write(block)
            yield len(block)
    entry.extra = b""  # of use before the data alone, not in the directory at the end


def read_packed(file: Path) -> Manifest:
    """The manifest of a packed bundle, nothing written to where it lies. Raises BundleError."""
    import tempfile

    with _opened(file) as archive, tempfile.TemporaryDirectory(prefix="mindmerger-") as folder:
        return _manifest(archive, _entries(archive, file), Path(folder), file)


def unpack(file: Path, out: Path | None = None, *, force: bool = False, talk: Talk | None = None) -> Path:
    """Make a folder of a packed bundle; returns it (default: the file's name without `.mmb`, here).

    Raises InputError when `out` exists, BundleError for anything that is not exactly a bundle, ModelError without space; the
    folder is then not there.
    """
    talk = talk or Talk()
    target = (
        out or Path(file.name.removesuffix(SUFFIX) if file.suffix == SUFFIX else f"{file.name}-bundle")
    ).absolute()
    check_free(target, force)
    talk(f"reading {file}")
    with _opened(file) as archive:
        entries = _entries(archive, file)
        total = sum(entry.file_size for entry in entries.values())
        check_disk(total, target.parent, "the unpacked bundle")
        with building(target) as folder:
            manifest = _manifest(archive, entries, folder, file)
            own = {entry.path: entry for entry in manifest.files if entry.package is None}
            if unknown := sorted(entries.keys() - own.keys() - {MANIFEST_NAME, *_BESIDE}):
                raise BundleError(
                    f"{file} holds {unknown[0]!r}, which its manifest does not name: pack the bundle again"
                )
            talk(f"unpacking {len(own)} files")
            done = 0
            for name, info in own.items():
                if name not in entries:
                    raise BundleError(f"{file} lacks {name!r}, which its manifest names: pack the bundle again")
                for count in _extract(archive, entries[name], folder, info, file):
                    done += count
                    talk.at(done // _BLOCK, max(1, total // _BLOCK))
            for name in _BESIDE:
                if name in entries:
                    for _ in _extract(archive, entries[name], folder, None, file):
                        pass
            publish(folder, target)
    return target


@contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except FileNotFoundError:
        raise BundleError(f"there is no file {file}: check the path") from None
    except IsADirectoryError:
        raise BundleError(f"{file} is a folder, not a packed bundle: it needs no unpacking") from None
    except (zipfile.BadZipFile, EOFError, NotImplementedError, struct.error, UnicodeDecodeError, ValueError) as error:
        raise BundleError(f"{file} is no packed bundle, or damaged ({error}): copy or pack it again") from None
    except OSError as error:
        raise BundleError(f"{file} cannot be read ({error.strerror or error}): check its permissions") from None


def _entries(archive: zipfile.ZipFile, file: Path) -> dict[str, zipfile.ZipInfo]:
    """The files of an archive by name; BundleError for whatever a pack of ours never has."""
    found: dict[str, zipfile.ZipInfo] = {}
    seen: set[str] = set()
    for entry in archive.infolist():
        # As it is in the file: zipfile cuts names at NUL and turns back-slashes on Windows.
        name = entry.orig_filename
        what = None
        if not is_inside(name) or len(name) > 1000:
            what = "a path that leads outside the bundle"
        elif name.casefold() in seen:
            what = "a name twice"
        elif entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            what = "compressed data, which a packed bundle has not"
        elif entry.flag_bits & 0x1:
            what = "encrypted data, which a packed bundle has not"
        elif stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
            what = "a link or device"
        if what is not None:
            raise BundleError(f"{file} holds {what} ({name[:80]!r}): do not trust it")
        seen.add(name.casefold())
        found[name] = entry
    # Stored entries that do not overlap cannot be larger together than the file that holds them.
    if sum(entry.file_size for entry in found.values()) > file.stat().st_size:
        raise BundleError(f"{file} declares more data than it has: do not trust it")
    for name in (MANIFEST_NAME, *_BESIDE):
        if name in found and found[name].file_size > _MOST_TEXT:
            raise BundleError(f"{file} holds a {name} that is too large to be one: do not trust it")
    return found


def _manifest(archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], folder: Path, file: Path) -> Manifest:
    if MANIFEST_NAME not in entries:
        raise BundleError(f"{file} is a zip without a {MANIFEST_NAME}: it is no packed bundle")
    for _ in _extract(archive, entries[MANIFEST_NAME], folder, None, file):
        pass
    try:
        return read_manifest(folder)
    except BundleError as error:
        # It names a temporary folder that nobody has seen.
        raise BundleError(f"{file}: {str(error).removeprefix(f'{folder / MANIFEST_NAME}: ')}") from None


def _extract(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path, info: FileInfo | None, file: Path
) -> Iterator[int]:
    """Write one file, hashing it on the way; yields the bytes of each block."""
    name = entry.orig_filename
    if info is not None and entry.file_size != info.bytes:
        raise BundleError(
            f"{file}: {name!r} has {entry.file_size} bytes instead of {info.bytes}: copy or pack it again"
        )
    path = folder.joinpath(*name.split("/"))
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    left = entry.file_size
    source: IO[bytes]
    with archive.open(entry) as source, path.open("xb") as out:
        while block := source.read(_BLOCK):
            left -= len(block)
            if left < 0:
                break
            digest.update(block)
            out.write(block)
            yield len(block)
    if left or (info is not None and digest.hexdigest() != info.sha256):
        raise BundleError(f"{file}: {name!r} does not have the expected size and sha256: copy or pack it again")
