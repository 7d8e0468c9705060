"""Steering as a user sees it: what the gate thought of a question, and what the answer is without the encoder, as trained,
as set.

Knows how to show it; how a question is weighed is the model's matter.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mindmerger.cli.interrupt import Reader
from mindmerger.cli.options import STEERING
from mindmerger.errors import InputError
from mindmerger.i18n import _

if TYPE_CHECKING:
    from mindmerger.generation import Generation
    from mindmerger.manifest import Manifest
    from mindmerger.model import MergedModel

_WIDTH = 20
_LANGUAGES = 5
_MAX_WEIGHT = 2.0


def need_gate(manifest: Manifest) -> None:
    """InputError where the bundle's method has no gate that could be told a language."""
    if manifest.gate is None:
        raise InputError(
            _("this bundle's method ({method}) has no gate: no language can be set, its encoder reads any").format(
                method=manifest.method
            )
        )


def without_gate(manifest: Manifest) -> str | None:
    """What to know about weights where there is no gate; None where there is one."""
    if manifest.gate is not None:
        return None
    return _("this bundle's method ({method}) has no gate: both weights are 1 unless you set them").format(
        method=manifest.method
    )


def compare(
    model: MergedModel, question: str, keywords: dict[str, Any], *, step: Callable[[], None] = lambda: None
) -> dict[str, Generation]:
    """The answers by setting: "llm alone" (encoder weight 0), "as trained", and "as set" where anything is set.

    `step` is called after each of them. Ctrl-C stops them all.
    """
    plain = {name: value for name, value in keywords.items() if name not in (*STEERING, "soft_prompt")}
    settings = {"llm alone": plain | {"encoder_weight": 0.0}, "as trained": plain}
    if any(name in keywords for name in STEERING):
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


def explanation(answers: dict[str, Generation], manifest: Manifest) -> str:
    """The answers of `compare` as text, the gate's distribution and weights as bars."""
    names = {"llm alone": _("LLM alone"), "as trained": _("as trained"), "as set": _("as set")}
    lines = []
    if sentence := without_gate(manifest):
        lines.append(sentence)
    if languages := answers["as trained"].language:
        lines.append(_("language"))
        for code, share in list(languages.items())[:_LANGUAGES]:
            lines.append(f"  {code:<10} {bar(share, 1.0)} {share:6.1%}")
    for name, result in answers.items():
        lines.append(names[name])
        for what, weight in (("encoder", result.encoder_weight), ("LLM", result.llm_weight)):
            if weight is not None:
                lines.append(f"  {what:<10} {bar(weight, _MAX_WEIGHT)} {weight:6.2f}")
        lines.append(f"  Answer: {result.answer or 'none'}")
    return "\n".join(lines)


def document(answers: dict[str, Generation]) -> dict[str, Any]:
    """The same for programs."""
    return {
        name.replace(" ", "_"): {"answer": result.answer, "text": result.text, **steering(result)}
        for name, result in answers.items()
    }


def steering(result: Generation) -> dict[str, Any]:
    """The distribution and the weights that were at work, for programs."""
    return {name: getattr(result, name) for name in STEERING}


def bar(value: float, full: float) -> str:
    """A bar of fixed width; in ASCII where the terminal has nothing better."""
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "")
    solid, empty = ("█", "·") if encoding.startswith("utf") else ("#", ".")
    count = round(min(max(value / full, 0.0), 1.0) * _WIDTH)
    return solid * count + empty * (_WIDTH - count)
