"""Whether the limit on this process's address space (`ulimit -v`) leaves room, known before a native library finds out.

Native libraries do not fail politely: numpy's import is a traceback of forty lines, OpenBLAS ends the process, llama.cpp and
ONNX Runtime may abort. So where there is a limit, and only there, what is needed is compared with what is left: once for the
libraries, before the first is imported, and once for a bundle, before it is loaded.

Imports nothing heavy. What the figures are: docs/doctor.md.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mindmerger.errors import ModelError
from mindmerger.i18n import _

if TYPE_CHECKING:
    from mindmerger.bundle import Bundle

_MIB = 1024 * 1024
# Address space, not memory: code and tables of numpy, ONNX Runtime, tokenizers and llama.cpp, and what they reserve.
_LIBRARIES = 230 * _MIB
# The same without numpy, which is there when a bundle is looked at.
_AFTER_NUMPY = 140 * _MIB
# A thread's stack; ONNX Runtime and llama.cpp each start as many as they are given, and there are two of ours.
_STACK = 8 * _MIB


def address_space_left() -> int | None:
    """Bytes that `ulimit -v` leaves this process; None where there is no limit, or the system does not say (Linux does)."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, _hard = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY:
        return None
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return None
    return max(0, soft - pages * os.sysconf("SC_PAGE_SIZE"))


def check_libraries() -> None:
    """Raise ModelError where the limit leaves no room for the libraries alone."""
    left = address_space_left()
    if left is not None and left < _LIBRARIES:
        raise _too_little(_LIBRARIES, left)


def check_bundle(bundle: Bundle, context: int | None, threads: int) -> None:
    """Raise ModelError where the limit leaves no room for `bundle`, of which nothing is loaded yet."""
    left = address_space_left()
    if left is None:
        return
    from mindmerger.memory import estimate

    need = estimate(bundle, context)
    mapped = need.files + need.llm
    whole = mapped + need.cache + need.buffers + need.vocabularies + _AFTER_NUMPY + (2 * threads + 2) * _STACK
    if left < whole:
        raise _too_little(whole, left)


def _too_little(need: int, left: int) -> ModelError:
    return ModelError(
        _(
            "the limit on this process's memory (ulimit -v) leaves {left} MB and about {need} MB are needed: raise it, or use "
            "a smaller context or a smaller bundle"
        ).format(left=left // 1_000_000, need=-(-need // 1_000_000))
    )
