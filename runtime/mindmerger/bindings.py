"""llama.cpp's low-level bindings, imported fast, and so that its threads do not stand in each other's way.

On Linux llama.cpp computes with libgomp, whose threads spin while they wait for each other, for milliseconds unless told
otherwise. Where other programs keep all cores busy, the thread that is waited for is not running, and spinning keeps it from
running: two threads on two busy cores need a minute for one answer. Sleeping at once costs half of the speed on idle cores. A
spin of some microseconds loses neither (docs/log.md has the figures, tests/bench/busy_machine.py prints them).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from types import ModuleType

# Turns of libgomp's waiting loop before a thread sleeps; its own default is 300,000.
SPIN = "2500"


def bindings() -> ModuleType:
    """The module llama_cpp.llama_cpp alone. Raises ImportError, OSError or RuntimeError where it cannot be loaded.

    The package's own __init__ also imports the high-level class with jinja2, a disk cache and a chat server's types:
    half the time that a warm start takes. Standing in for the package while its submodule loads avoids that; a
    later `import llama_cpp` by somebody else runs __init__ as ever and finds the same submodule.
    """
    _spin_little()
    name = "llama_cpp"
    if name not in sys.modules:
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ImportError("llama-cpp-python is not installed")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            return importlib.import_module(f"{name}.llama_cpp")
        finally:
            sys.modules.pop(name, None)
    return importlib.import_module(f"{name}.llama_cpp")


def _spin_little() -> None:
    """Tell libgomp, which reads the environment once, when it is loaded. What a user has said stands."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN)
