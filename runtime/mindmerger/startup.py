"""Cold costs, as a user pays them: a new process for every measurement, the files in the system's cache."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from mindmerger.benchmark import RUNTIME, Figure, Result, figure_of
from mindmerger.errors import ModelError
from mindmerger.i18n import _

_IMPORT = "from time import perf_counter as p; t = p(); import mindmerger; print(p() - t)"
STEPS = 4


def measure_startup(bundle: str | None, question: str, repeats: int, *, step: Callable[[], None]) -> Result:
    """`import mindmerger`, `mm-run --help`, and a question until its first byte of text."""
    run = _mm_run()
    ask = [*run, *([] if bundle is None else ["--bundle", bundle]), "--max-tokens", "1", "--", question]
    kinds: list[tuple[str, Callable[[], float], str]] = [
        ("python, nothing imported", lambda: _wall([sys.executable, "-c", "pass"]), ""),
        ("import mindmerger", lambda: float(_output([sys.executable, "-c", _IMPORT])) * 1e3, "≤ 100 ms"),
        ("mm-run --help", lambda: _wall([*run, "--help"]), "≤ 150 ms"),
        ("mm-run to the first token", lambda: _first_byte(ask), "≤ 1000 ms"),
    ]
    figures: list[Figure] = []
    for metric, measure, target in kinds:
        measure()  # warms up: bytecode, the file cache, the LLM prepared
        figures.append(figure_of(RUNTIME, metric, "ms", [measure() for _ in range(repeats)], target))
        step()
    return Result({"repeats": repeats, "command": " ".join(run), "question": question}, figures)


def _mm_run() -> list[str]:
    """mm-run as it is installed beside this interpreter; from a checkout, its module."""
    script = Path(sys.executable).with_name("mm-run.exe" if os.name == "nt" else "mm-run")
    if script.is_file():
        return [str(script)]
    root = str(Path(__file__).resolve().parents[1])
    return [sys.executable, "-c", f"import sys; sys.path.append({root!r}); from mindmerger.cli.run import main; main()"]


def _output(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ModelError(_ended(repr(command[-1]), result.returncode, last))
    return result.stdout


def _wall(command: list[str]) -> float:
    began = perf_counter()
    _output(command)
    return (perf_counter() - began) * 1e3


def _first_byte(command: list[str]) -> float:
    began = perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        first = process.stdout.read(1)
        spent = perf_counter() - began
        process.stdout.read()
        last = process.stderr.read().decode("utf-8", "replace").strip()
    if process.returncode or not first:
        raise ModelError(_ended("mm-run", process.returncode, last[-300:]))
    return spent * 1e3


def _ended(what: str, code: int, last: str) -> str:
    return _("{what} ended with code {code} ({last}): run mm-doctor").format(what=what, code=code, last=last)
