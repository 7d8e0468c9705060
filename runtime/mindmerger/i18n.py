"""Which language MindMerger talks in, and the catalogues of its sentences.

    from mindmerger.i18n import _
    raise InputError(_("the question has {count} tokens: shorten it").format(count=count))

The text in the code is English and is the key. A sentence with figures has named placeholders and is formatted after
the look-up: an f-string would be looked up with its figures and never be found. Only people's sentences go through
here; what programs read (stdout's "Answer: 42", the keys of JSON, names of options) is the same in every language.

The language is MINDMERGER_LANG, else that of the locale: LANGUAGE, LC_ALL, LC_MESSAGES, LANG, in that order; the
first of them that names a language with a catalogue. LC_ALL=C means English whatever LANGUAGE says, as for GNU programs.
`gettext` itself is imported with the first sentence that is not English.

Knows nothing about who says what. How catalogues are made: docs/translating.md.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

DOMAIN = "mindmerger"
FOLDER = Path(__file__).parent / "locale"
LANGUAGES = ("es", "fr", "hi", "sw")
"""Languages with a catalogue. English, the text in the code, needs none."""
OVERRIDE = "MINDMERGER_LANG"

_LOCALE = ("LC_ALL", "LC_MESSAGES", "LANG")


def language() -> str:
    """The language to talk in: "en" or one of LANGUAGES."""
    named = os.environ.get(OVERRIDE)
    if not named:
        locale = next((value for name in _LOCALE if (value := os.environ.get(name))), "")
        named = locale if locale in ("C", "POSIX") else os.environ.get("LANGUAGE") or locale
    for one in named.split(":"):
        # es_MX.UTF-8@euro and es-MX are both Spanish
        code = one.partition(".")[0].partition("@")[0].replace("-", "_").partition("_")[0].lower()
        if code == "en" or code in LANGUAGES:
            return code
    return "en"


def _(sentence: str) -> str:
    """`sentence` in the user's language; itself where there is no translation."""
    code = language()
    return sentence if code == "en" else _catalogue(code)(sentence)


@cache
def _catalogue(code: str) -> Callable[[str], str]:
    import gettext

    # an installation without the catalogue talks English
    return gettext.translation(DOMAIN, FOLDER, [code], fallback=True).gettext


def speak_in_click() -> None:
    """Let click's own sentences ("Usage:", "No such option") come from our catalogues. For commands only.

    click asks the process's text domain in the language of the environment, so both are set for the whole process:
    a library has no right to that.
    """
    import gettext

    code = language()
    os.environ["LANGUAGE"] = code
    if code != "en":
        gettext.bindtextdomain(DOMAIN, str(FOLDER))
        gettext.textdomain(DOMAIN)
