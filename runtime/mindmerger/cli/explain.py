"""--explain: what the gate thought of a question, and what the answer is without the encoder, as trained, as set.

Knows how to show it; how a question is weighed is the model's matter.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mindmerger.cli.interrupt import Reader
from mindmerger.errors import InputError
from mindmerger.i18n import _

if TYPE_CHECKING:
    from mindmerger.generation import Generation
    from mindmerger.manifest import Manifest
    from mindmerger.model import MergedModel

STEERING = ("language", "encoder_weight", "llm_weight")
"""The options of `generate` that need a gate."""

_WIDTH = 20
_LANGUAGES = 5
_MAX_WEIGHT = 2.0


def need_gate(manifest: Manifest) -> None:
    """InputError where the bundle's method has no gate, so that there is nothing to steer or to explain."""
    if manifest.method != "st-merge":
        raise InputError(
            _("this bundle's method ({method}) has no gate: languages and weights cannot be set or explained").format(
                method=manifest.method
            )
        )


@dataclass(frozen=True)
class Gate:
    """What the gate said of one question. Weights are in (0, 2); `languages` by code, the likeliest first."""

    languages: dict[str, float]
    encoder_weight: float
    llm_weight: float


def gate_of(result: Generation) -> Gate | None:
    """What an answer tells of the gate; None where there was none."""
    languages = getattr(result, "language", None)
    weights = getattr(result, "encoder_weight", None), getattr(result, "llm_weight", None)
    if not languages or None in weights:
        return None
    return Gate(dict(languages), float(weights[0]), float(weights[1]))  # type: ignore[arg-type]


def compare(
    model: MergedModel, question: str, keywords: dict[str, Any], *, step: Callable[[], None] = lambda: None
) -> dict[str, Generation]:
    """The answers by setting: "llm alone" (encoder weight 0), "as trained", and "as set" where anything is set.

    `step` is called after each of them. Ctrl-C stops them all.
    """
    plain = {name: value for name, value in keywords.items() if name not in STEERING}
    settings = {"llm alone": plain | {"encoder_weight": 0.0}, "as trained": plain}
    if len(plain) != len(keywords):
        settings["as set"] = keywords
    answers = {}
    for name, setting in settings.items():
        stream = model.generate(question, **setting)
        with Reader(model, stream) as chunks:
            for _chunk in chunks:
                pass
        answers[name] = stream.result
        step()
    return answers


def explanation(answers: dict[str, Generation]) -> str:
    """The answers of `compare` as text, the gate's distribution and weights as bars."""
    names = {"llm alone": _("LLM alone"), "as trained": _("as trained"), "as set": _("as set")}
    lines = []
    gate = gate_of(answers["as trained"])
    if gate is not None:
        lines.append(_("language"))
        for code, share in list(gate.languages.items())[:_LANGUAGES]:
            lines.append(f"  {code:<10} {bar(share, 1.0)} {share:5.1%}")
    for name, result in answers.items():
        lines.append(names[name])
        if (shown := gate_of(result)) is not None:
            lines.append(f"  {'encoder':<10} {bar(shown.encoder_weight, _MAX_WEIGHT)} {shown.encoder_weight:5.2f}")
            lines.append(f"  {'LLM':<10} {bar(shown.llm_weight, _MAX_WEIGHT)} {shown.llm_weight:5.2f}")
        lines.append(f"  Answer: {result.answer or 'none'}")
    return "\n".join(lines)


def document(answers: dict[str, Generation]) -> dict[str, Any]:
    """The same for programs."""
    shown: dict[str, Any] = {}
    for name, result in answers.items():
        gate = gate_of(result)
        shown[name.replace(" ", "_")] = {
            "answer": result.answer,
            "text": result.text,
            "language": None if gate is None else gate.languages,
            "encoder_weight": None if gate is None else gate.encoder_weight,
            "llm_weight": None if gate is None else gate.llm_weight,
        }
    return shown


def bar(value: float, full: float) -> str:
    """A bar of fixed width; in ASCII where the terminal has nothing better."""
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "")
    solid, empty = ("█", "·") if encoding.startswith("utf") else ("#", ".")
    count = round(min(max(value / full, 0.0), 1.0) * _WIDTH)
    return solid * count + empty * (_WIDTH - count)
