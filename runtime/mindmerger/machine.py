"""What this machine has: processor features, memory and disk that are free, and how much memory a process holds.

Asked of the operating system at the moment of the call. What it does not tell is None, never a guess. Knows nothing
about bundles or models.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from mindmerger.limits import address_space_left

# What ggml calls a feature → the flags of /proc/cpuinfo that it stands for, all of them needed.
_X86 = {
    "SSE3": ("pni",),
    "SSSE3": ("ssse3",),
    "AVX": ("avx",),
    "AVX_VNNI": ("avx_vnni",),
    "AVX2": ("avx2",),
    "F16C": ("f16c",),
    "FMA": ("fma",),
    "BMI2": ("bmi2",),
    "AVX512": ("avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"),
    "AVX512_VBMI": ("avx512vbmi",),
    "AVX512_VNNI": ("avx512_vnni",),
    "AVX512_BF16": ("avx512_bf16",),
    "AMX_INT8": ("amx_tile", "amx_int8"),
}
_ARM = {
    "NEON": ("asimd",),
    "ARM_FMA": ("asimd",),
    "FP16_VA": ("asimdhp",),
    "DOTPROD": ("asimddp",),
    "MATMUL_INT8": ("i8mm",),
    "SVE": ("sve",),
    "SME": ("sme",),
}
# The same in sysctl's names (macOS) and as arguments of IsProcessorFeaturePresent (Windows).
_SYSCTL = {
    "SSE3": "hw.optional.sse3",
    "SSSE3": "hw.optional.supplementalsse3",
    "AVX": "hw.optional.avx1_0",
    "AVX2": "hw.optional.avx2_0",
    "F16C": "hw.optional.f16c",
    "FMA": "hw.optional.fma",
    "BMI2": "hw.optional.bmi2",
    "AVX512": "hw.optional.avx512bw",
    "NEON": "hw.optional.neon",
    "ARM_FMA": "hw.optional.neon",
    "FP16_VA": "hw.optional.arm.FEAT_FP16",
    "DOTPROD": "hw.optional.arm.FEAT_DotProd",
    "MATMUL_INT8": "hw.optional.arm.FEAT_I8MM",
    "SME": "hw.optional.arm.FEAT_SME",
}
_WINDOWS = {"SSE3": 13, "SSSE3": 36, "AVX": 39, "AVX2": 40, "AVX512": 41, "NEON": 19, "DOTPROD": 43}


@dataclass(frozen=True)
class Features:
    """`present`: the features that the processor has; `asked`: those that could be asked for. In ggml's names."""

    present: frozenset[str]
    asked: frozenset[str]


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> Features:
    """The processor's vector features."""
    if sys.platform == "win32":
        kernel = ctypes.windll.kernel32
        found = {name for name, number in _WINDOWS.items() if kernel.IsProcessorFeaturePresent(number)}
        return Features(frozenset(found), frozenset(_WINDOWS))
    if sys.platform == "darwin":
        return _sysctl_features()
    flags: set[str] = set()
    try:
        with cpuinfo.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() in ("flags", "Features"):
                    flags = set(value.split())
                    break
    except OSError:
        pass
    if not flags:
        return Features(frozenset(), frozenset())
    table = _ARM if "asimd" in flags else _X86
    return Features(frozenset(name for name, needed in table.items() if flags.issuperset(needed)), frozenset(table))


def cpu_flags() -> dict[str, tuple[str, ...]]:
    """A feature in ggml's name → the flags of Linux's /proc/cpuinfo that it needs, for processors of this kind."""
    return dict(_ARM if platform.machine().lower() in ("aarch64", "arm64") else _X86)


def _sysctl_features() -> Features:
    present, asked = set(), set()
    for name, key in _SYSCTL.items():
        result = subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, check=False)
        if result.returncode == 0:  # the other architecture's keys do not exist
            asked.add(name)
            if result.stdout.strip() == "1":
                present.add(name)
    return Features(frozenset(present), frozenset(asked))


def processor_name() -> str:
    """The processor as the system calls it."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


# ------------------------------------------------------------------------------------------------------ memory


@dataclass(frozen=True)
class Resident:
    """Memory of a process in bytes. `anonymous` is its own (RssAnon), the rest of `rss` is mapped files, which the
    system can drop and share; `peak` is the largest `rss` so far (VmHWM)."""

    rss: int
    anonymous: int
    peak: int


def resident(pid: int | None = None) -> Resident | None:
    """Memory that a process (default: this one) holds now; None where the system does not say (not Linux)."""
    fields = _kilobytes(Path("/proc") / ("self" if pid is None else str(pid)) / "status")
    try:
        return Resident(fields["VmRSS"], fields["RssAnon"], fields["VmHWM"])
    except KeyError:
        return None


def available_memory() -> int | None:
    """Bytes that this process could still take: the machine's, or less where a container or `ulimit -v` says so."""
    bounds = [bound for bound in (_system_available(), _cgroup_available(), address_space_left()) if bound is not None]
    return max(0, min(bounds)) if bounds else None


def _kilobytes(path: Path) -> dict[str, int]:
    """The `Name: 123 kB` lines of a file of /proc, in bytes."""
    fields: dict[str, int] = {}
    try:
        for line in path.read_text(encoding="ascii", errors="replace").splitlines():
            name, _, rest = line.partition(":")
            words = rest.split()
            if len(words) == 2 and words[1] == "kB" and words[0].isdigit():
                fields[name] = int(words[0]) * 1024
    except OSError:
        pass
    return fields


def _system_available() -> int | None:
    if sys.platform == "win32":
        return _windows_available()
    if sys.platform == "darwin":
        return _darwin_available()
    return _kilobytes(Path("/proc/meminfo")).get("MemAvailable")


def _darwin_available() -> int | None:
    result = subprocess.run(["vm_stat"], capture_output=True, text=True, check=False)
    pages = 0
    size = os.sysconf("SC_PAGE_SIZE")
    for line in result.stdout.splitlines():
        name, _, count = line.partition(":")
        if name in ("Pages free", "Pages inactive", "Pages speculative", "Pages purgeable"):
            pages += int(count.strip().rstrip(".") or 0)
    return pages * size if pages else None


def _windows_available() -> int | None:
    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *((name, ctypes.c_ulonglong) for name in
              ("total", "available", "total_page", "available_page", "total_virtual", "available_virtual", "extended")),
        )  # fmt: skip

    status = Status(ctypes.sizeof(Status))
    windll = getattr(ctypes, "windll", None)
    if windll is None or not windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return int(status.available)


def _cgroup_available(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What a container's memory limit leaves: version 2, then version 1. File pages there can be dropped."""
    for limit, used, statistics in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        try:
            bound = int((root / limit).read_text())
            taken = int((root / used).read_text())
            lines = (line.split() for line in (root / statistics).read_text().splitlines())
            cached = sum(int(line[1]) for line in lines if line[0] in ("inactive_file", "active_file"))
        except (OSError, ValueError, IndexError):
            continue  # "max" is no number: no limit
        return bound - taken + cached
    return None


# -------------------------------------------------------------------------------------------------------- disk


def free_disk(folder: Path) -> int | None:
    """Free bytes where `folder` is, or where it would be made."""
    for place in (folder, *folder.parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return None
