"""What mm-doctor finds, one line each, and how an error becomes such a line. Knows nothing about what is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mindmerger.errors import MindMergerError
from mindmerger.i18n import _

Level = Literal["ok", "warning", "problem"]
REINSTALL = "pip install --force-reinstall --no-cache-dir"


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, and (where it is not well) what to do.

    `exit_code` is that of the error which the problem would cause, 0 for what is no problem.
    """

    check: str
    level: Level
    text: str
    advice: str = ""
    exit_code: int = 0


def from_error(check: str, error: MindMergerError, advice: str = "") -> Finding:
    """An error's sentence says what is wrong and, after its last colon, what to do."""
    text, colon, own = str(error).rpartition(": ")
    if not colon or advice:
        return Finding(check, "problem", str(error), advice or _("see the message"), error.exit_code)
    return Finding(check, "problem", text.rstrip(), own, error.exit_code)


def megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def worst(findings: list[Finding]) -> int:
    """The exit code of a command that reports these: that of the first problem, 0 without one."""
    return next((finding.exit_code for finding in findings if finding.level == "problem"), 0)
