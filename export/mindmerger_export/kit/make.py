"""Make the kit: wheels, bundle, notices, bill of materials and checksums in one folder that gets its name at the end."""

from __future__ import annotations

import hashlib
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from mindmerger.bundle import resolve
from mindmerger.errors import InputError, ModelError
from mindmerger.machine import free_disk
from mindmerger.manifest import Manifest, read_manifest
from mindmerger_export.kit import native, notices, sbom, sums, wheels
from mindmerger_export.standalone import make_standalone
from mindmerger_export.talk import Talk
from mindmerger_export.workspace import building, publish

EXTRAS = ("serve",)
COMMANDS = ("mm-run", "mm-serve", "mm-bench", "mm-doctor")
ENVIRONMENT = "kit.env"
_FILES = Path(__file__).parent / "files"
# The packages, and room for building some of them.
_WHEELS = 600_000_000
# Unpacked and compiled to byte code, packages take so many times their wheels.
_UNPACKED = 4


@dataclass(frozen=True)
class KitRequest:
    """What the kit is made of. `mindmerger` as in `wheels.fetch`; `notices`: further files for the notices."""

    bundle: str | None = None
    out: Path | None = None
    mindmerger: str | None = None
    any_processor: bool = False
    notices: tuple[Path, ...] = ()
    force: bool = False


@dataclass(frozen=True)
class Kit:
    """A finished kit. `sha256` is that of SHA256SUMS and stands for all of it."""

    folder: Path
    bytes: int
    sha256: str


def make_kit(request: KitRequest, talk: Talk | None = None) -> Kit:
    """Make a kit for machines like this one; see the module.

    Raises InputError where the platform has no kits or `out` exists, BundleError for a damaged bundle, ModelError without
    space, MindMergerError where packages cannot be fetched.
    """
    talk = talk or Talk()
    check_platform()
    further = [(path.name, _read(path)) for path in request.notices]
    bundle = resolve(request.bundle)
    manifest = read_manifest(bundle)
    out = (request.out or Path(f"{manifest.name}-kit-{_tag()}")).absolute()
    check_out(out, request.force)
    # an LLM that is prepared out of a smaller one counts twice
    _check_room(2 * sum(entry.bytes for entry in manifest.files) + _WHEELS, out)
    with building(out) as folder:
        manifest = read_manifest(make_standalone(str(bundle), folder / "bundle", talk=talk))
        said = notices.notice_of(bundle)
        if said is not None:
            _write(folder / "bundle" / notices.BUNDLE_FILE, said)
        (folder / "wheels").mkdir()
        (folder / "installer").mkdir()
        found = wheels.fetch(
            folder / "wheels", mindmerger=request.mindmerger, extras=EXTRAS, portable=request.any_processor, talk=talk
        )
        pip = wheels.fetch_pip(folder / "installer", talk)
        talk("reading what the packages need and say")
        by_name = {wheel.name: wheel for wheel in found}
        needs = native.needs_of(found, by_name[wheels.LLAMA])
        (folder / "libraries").mkdir()
        for soname, path in needs.libraries.items():
            shutil.copyfile(path, folder / "libraries" / soname)
        texts = [*([] if said is None else [(notices.BUNDLE_FILE, said)]), *further]
        parts = notices.parts_of([*found, pip], manifest, needs.libraries, texts)
        _write(folder / notices.FILE, notices.render(parts))
        _write(folder / sbom.FILE, sbom.render([*found, pip], manifest, needs.libraries))
        _finish(folder, by_name[wheels.NAME], needs, manifest, request.any_processor)
        talk("hashing")
        digest = sums.write_sums(folder, talk)
        total = _size(folder)
        publish(folder, out)
    return Kit(out, total, digest)


def _finish(folder: Path, own: wheels.Wheel, needs: native.Needs, manifest: Manifest, any_processor: bool) -> None:
    """What install.sh and people read."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    packages, models = _size(folder / "wheels"), _size(folder / "bundle")
    installed = _UNPACKED * packages + models
    told = {
        "KIT_ID": f"{own.version}-{hashlib.sha256(manifest.to_json().encode()).hexdigest()[:8]}",
        "KIT_MACHINE": platform.machine(),
        "KIT_PYTHON": version,
        "KIT_PYTHON_TUPLE": version.replace(".", ", "),
        "KIT_GLIBC": str(needs.glibc),
        "KIT_FLAGS": " ".join(needs.flags),
        "KIT_KILOBYTES": str(installed // 1024),
        "KIT_REQUIREMENT": f"{wheels.NAME}[{','.join(EXTRAS)}]=={own.version}",
        "KIT_COMMANDS": " ".join(COMMANDS),
    }
    # no value of these has a quote: names, numbers and flags
    assert not any("'" in value for value in told.values()), told
    _write(folder / ENVIRONMENT, "".join(f"{key}='{value}'\n" for key, value in told.items()))
    shutil.copyfile(_FILES / "install.sh", folder / "install.sh")
    (folder / "install.sh").chmod(0o755)
    readme = (_FILES / "README.md").read_text(encoding="utf-8")
    for key, value in {
        "version": own.version,
        "bundle": manifest.name,
        "machine": platform.machine(),
        "glibc": str(needs.glibc),
        "python": version,
        "processor": "" if any_processor else " and a processor with all that this one was built on has",
        "megabytes": str(round(_size(folder) / 1e6)),
        "installed": str(round(installed / 1e6)),
    }.items():
        readme = readme.replace(f"{{{key}}}", value)
    _write(folder / "README.md", readme)


def check_platform(system: str = sys.platform) -> None:
    """Raises InputError where there are no kits: install.sh knows Linux with glibc."""
    if system != "linux" or not platform.libc_ver()[0] == "glibc":
        raise InputError(
            f"kits are made on and for Linux with glibc, this is {system}: make it on a machine like the one that will get it"
        )


def check_out(out: Path, force: bool) -> None:
    """Raises InputError where `out` is taken: by anything without `force`, by anything but a kit with it."""
    if not out.exists() and not out.is_symlink():
        return
    if not force:
        raise InputError(f"{out} exists: give another --out, or --force to replace a kit")
    if not (out / ENVIRONMENT).is_file():
        raise InputError(f"{out} exists and is no kit: --force replaces kits only")


def _tag() -> str:
    return f"linux-{platform.machine()}-py{sys.version_info.major}.{sys.version_info.minor}"


def _check_room(size: int, out: Path) -> None:
    folder = out.parent
    while not folder.is_dir():
        folder = folder.parent
    free = free_disk(folder)
    if free is not None and free < size:
        raise ModelError(
            f"the kit needs about {size // 10**6} MB on the disk of {folder} and {free // 10**6} MB are free: make room, or "
            "give another --out"
        )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the notice {path} cannot be read ({error})") from None


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise ModelError(f"{path} cannot be written ({error.strerror}): check space and permissions") from None
