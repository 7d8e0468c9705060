"""Memory that was freed, given back to the system: C libraries keep it for themselves otherwise.

Measured with the embedded default: releasing encoder and tokenizer lowers the resident memory by 90 MB with this, and by 5 MB
without it.
"""

from __future__ import annotations

import ctypes
import sys


def give_memory_back() -> None:
    """Where the C library is glibc, return its free pages; elsewhere nothing, they do so by themselves or not at all."""
    if not sys.platform.startswith("linux"):
        return
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # musl
        return
