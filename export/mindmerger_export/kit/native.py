"""What the kit's native code asks of the machine that it will run on: processor, C library, shared libraries.

llama-cpp-python is built on the machine that makes the kit, often for its very processor, and needs libgomp, which an empty
Debian does not have. So all three are found out here, and install.sh compares. Linux alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mindmerger.errors import ModelError
from mindmerger.machine import cpu_flags
from mindmerger_export.kit.wheels import Wheel

# Parts of the C library: every Linux of its kind has them, and taking them along would be wrong.
_SYSTEM = re.compile(r"^(linux-vdso|ld-linux[^.]*|lib(c|m|dl|rt|pthread|util|resolv))[.-]")
_GLIBC = re.compile(rb"GLIBC_2\.(\d+)\b")
_CPU = "libggml-cpu.so"
# Loaded by its own path, as llama-cpp-python does; every ggml_cpu_has_* says 0 or 1.
_ASK = """
import ctypes, json, sys
library = ctypes.CDLL(sys.argv[1])
print(json.dumps([name for name in sys.argv[2].split(",") if getattr(library, "ggml_cpu_has_" + name.lower())()]))
"""


@dataclass(frozen=True)
class Needs:
    """`flags`: of /proc/cpuinfo. `glibc`: the minor version of glibc 2. `libraries`: soname → file on this machine."""

    flags: tuple[str, ...]
    glibc: int
    libraries: dict[str, Path]


def needs_of(wheels: Iterable[Wheel], llama: Wheel) -> Needs:
    """What the shared libraries of `wheels` need; `llama` is asked for its processor features."""
    glibc = 0
    for wheel in wheels:
        with zipfile.ZipFile(wheel.path) as archive:
            for name in archive.namelist():
                if re.search(r"\.so(\.|$)", name):
                    glibc = max([glibc, *(int(one) for one in _GLIBC.findall(archive.read(name)))])
    with tempfile.TemporaryDirectory(prefix="mindmerger-") as folder, zipfile.ZipFile(llama.path) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith("llama_cpp/lib/")])
        libraries = Path(folder) / "llama_cpp" / "lib"
        return Needs(_flags(libraries), glibc, _foreign(libraries))


def _flags(libraries: Path) -> tuple[str, ...]:
    """The processor's flags that ggml was built to use."""
    path = libraries / _CPU
    table = cpu_flags()
    # The libraries that it needs lie beside it.
    result = subprocess.run(
        [sys.executable, "-c", _ASK, str(path), ",".join(sorted(table))],
        capture_output=True,
        text=True,
        env={**os.environ, "LD_LIBRARY_PATH": str(libraries)},
        check=False,
    )
    if result.returncode:
        raise ModelError(
            f"llama.cpp of the kit does not load here ({(result.stderr.strip().splitlines() or ['it died'])[-1]}): build it "
            "again with pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python llama-cpp-python"
        )
    return tuple(sorted({flag for feature in json.loads(result.stdout) for flag in table[feature]}))


def _foreign(libraries: Path) -> dict[str, Path]:
    """Shared libraries that come neither with the wheel nor with the C library."""
    if shutil.which("ldd") is None:
        raise ModelError("ldd is not here: install the package libc-bin, it says what llama.cpp needs")
    found: dict[str, Path] = {}
    for library in sorted(libraries.glob("*.so")):
        said = subprocess.run(["ldd", str(library)], capture_output=True, text=True, check=False).stdout
        for soname, path in re.findall(r"^\s*(\S+) => (/\S+)", said, re.MULTILINE):
            if not _SYSTEM.match(soname) and not Path(path).is_relative_to(libraries):
                found[soname] = Path(path).resolve()
    return found
