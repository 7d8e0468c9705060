"""The options that say how to generate: one table for mm-run's questions, batches and sessions.

Only what was given is passed on, so what is not given is as the bundle says.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from mindmerger.errors import InputError
from mindmerger.i18n import _

F = TypeVar("F", bound=Callable[..., Any])

STEERING = ("language", "encoder_weight", "llm_weight")
"""The options that steer; they have the same name on the command line and in `generate`."""

# option of the command line → argument of `generate`
_DIRECT = {
    "max_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "repeat_penalty",
    "seed": "seed",
    "timeout": "timeout",
    **{name: name for name in STEERING},
}
_SWITCHES = {"no_merge": "soft_prompt", "no_calculator": "calculator"}
NAMES = (*_DIRECT, *_SWITCHES, "stop", "grammar")

_MAX_GRAMMAR_BYTES = 1 << 20


def generation_options(function: F) -> F:
    """Add the options to a command; `NAMES` are the arguments that it gets."""
    for option in reversed(
        [
            click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help=_("Generate at most N tokens.")),
            click.option(
                "--temperature",
                type=float,
                metavar="T",
                help=_("0: always the likeliest token (default: the bundle's)."),
            ),
            click.option("--top-k", type=int, metavar="N", help=_("Draw from the N likeliest tokens only.")),
            click.option(
                "--top-p", type=float, metavar="P", help=_("Draw from the likeliest tokens that make up P of 1 only.")
            ),
            click.option(
                "--min-p",
                type=float,
                metavar="P",
                help=_("Draw only tokens at least P times as likely as the likeliest."),
            ),
            click.option(
                "--seed", type=int, metavar="N", help=_("With a temperature above 0: the same seed, the same text.")
            ),
            click.option(
                "--repeat-penalty",
                type=float,
                metavar="X",
                help=_("Above 1: the answer's last 64 tokens become less likely (default: 1)."),
            ),
            click.option("--stop", multiple=True, metavar="TEXT", help=_("End before this text; may be given again.")),
            click.option(
                "--timeout", type=float, metavar="S", help=_("End an answer after S seconds with what it has.")
            ),
            click.option(
                "--grammar",
                type=click.Path(path_type=Path),
                metavar="FILE",
                help=_("A GBNF grammar that the answer must follow."),
            ),
            click.option("--no-merge", is_flag=True, help=_("The LLM alone, without the encoder's soft prompt.")),
            click.option(
                "--no-calculator",
                is_flag=True,
                help=_("Let the LLM do its own sums in <<48/2=24>> annotations."),
            ),
            click.option(
                "--language", metavar="CODE", help=_("The question's language for the gate, as in sw (default: found).")
            ),
            click.option(
                "--encoder-weight",
                type=click.FloatRange(0, 2),
                metavar="W",
                help=_("Weigh the encoder's rows by W, from 0 to 2, instead of the gate's weight."),
            ),
            click.option(
                "--llm-weight",
                type=click.FloatRange(0, 2),
                metavar="W",
                help=_("Weigh the LLM's reading of the question by W, from 0 to 2."),
            ),
        ]
    ):
        function = option(function)
    return function


def keywords(options: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `generate` for what was given; UsageError where options contradict each other."""
    if options["no_merge"]:
        for name in STEERING:
            if options[name] is not None:
                option = "--" + name.replace("_", "-")
                raise click.UsageError(
                    _("{one} and {other} exclude each other.").format(one="--no-merge", other=option)
                )
    given = {target: options[name] for name, target in _DIRECT.items() if options[name] is not None}
    given |= {target: False for name, target in _SWITCHES.items() if options[name]}
    if options["stop"]:
        given["stop"] = list(options["stop"])
    if options["grammar"] is not None:
        given["grammar"] = _grammar(options["grammar"])
    return given


def _grammar(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(_("{path} cannot be read ({reason})").format(path=path, reason=error.strerror)) from None
    try:
        if len(data) > _MAX_GRAMMAR_BYTES:
            raise ValueError
        return data.decode("utf-8-sig")
    except ValueError:
        raise InputError(
            _("{path} is not a grammar: it must be UTF-8 text of at most 1 MB").format(path=path)
        ) from None
