"""What llama.cpp calls back, as native code: functions of libc that happen to be what is wanted.

A Python function there would take the interpreter's lock for every call, and what is raised in it is lost. Knows nothing
about models.
"""

from __future__ import annotations

import ctypes
import sys
from types import ModuleType
from typing import Any


def silence(native: ModuleType) -> Any:
    """A log callback that says nothing, as native code: libc's `abs` of the level.

    In a Python function Ctrl-C would end nothing: ctypes prints "Exception ignored" and goes on. llama.cpp logs hundreds of
    lines while it loads, so that is where it used to arrive.
    """
    try:
        return ctypes.cast(_libc().abs, native.llama_log_callback)
    except (OSError, AttributeError):
        return native.llama_log_callback(lambda _level, _text, _data: None)


def stop_when_set(native: ModuleType) -> Any:
    """llama.cpp's abort callback as native code: libc's `strlen` on a two-byte flag.

    The callback runs before every node of the graph, a thousand times a token; a Python function would take the
    interpreter's lock each time. `strlen` of "" is 0 (go on) and of "\\1" is 1 (stop), which is exactly the
    `bool f(void *)` that is wanted, in every calling convention that returns small integers in one register.
    """
    try:
        return ctypes.cast(_libc().strlen, native.ggml_abort_callback)
    except (OSError, AttributeError):
        return None  # cancelling then waits for the end of the native call


def _libc() -> Any:
    return ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)
