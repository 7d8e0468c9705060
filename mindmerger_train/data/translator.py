"""English texts in other languages by Apertium, a rule-based translator that needs no network and no model.

It is a program of its own (GPL; Debian and Ubuntu: `apt install apertium apertium-eng-spa apertium-fr-es apertium-es-pt`),
called, not linked: nothing of the product needs it, only recipes that say so. From English it translates well into Spanish
alone; French and Portuguese go through Spanish and read like it.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence

from mindmerger.errors import DataError

# language → the modes that lead to it from English, and the Debian packages that have them.
ROUTES: dict[str, tuple[tuple[str, str], ...]] = {
    "es": (("eng-spa", "apertium-eng-spa"),),
    "fr": (("eng-spa", "apertium-eng-spa"), ("es-fr", "apertium-fr-es")),
    "pt": (("eng-spa", "apertium-eng-spa"), ("es-pt", "apertium-es-pt")),
}
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def translated(texts: Sequence[str], language: str) -> list[str | None]:
    """Each of `texts` (English) in `language`; None where the translation has not the same numbers.

    Raises DataError when there is no way into the language, or Apertium or a language of its is not installed.
    """
    if language not in ROUTES:
        raise DataError(f"no translation into {language!r}: there is one into {', '.join(ROUTES)}")
    lines = [" ".join(text.split()) for text in texts]
    for mode, package in ROUTES[language]:
        lines = _apertium(lines, mode, package)
    same = [
        sorted(_NUMBER.findall(line)) == sorted(_NUMBER.findall(text)) for line, text in zip(lines, texts, strict=True)
    ]
    return [line if line and kept else None for line, kept in zip(lines, same, strict=True)]


def _apertium(lines: Sequence[str], mode: str, package: str) -> list[str]:
    how = f"install them, as in `apt install apertium {package}`, or leave the language out"
    try:
        run = subprocess.run(  # -u: words it does not know stay as they are, without a star
            ["apertium", "-u", mode], input="\n".join(lines) + "\n", capture_output=True, encoding="utf-8", check=False
        )
    except OSError as error:
        raise DataError(f"Apertium, which translates, cannot be started ({error}): {how}") from error
    out = run.stdout.split("\n")[:-1]
    if run.returncode or len(out) != len(lines):
        why = run.stderr.strip()[:200] or f"{len(out)} lines of {len(lines)} came back"
        raise DataError(f"Apertium's {mode} did not translate ({why}): {how}")
    return [" ".join(line.split()) for line in out]
