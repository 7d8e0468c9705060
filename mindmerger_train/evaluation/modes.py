"""The modes in which a model is asked: which options each sets, and which methods have it.

| mode | options of `generate` | needs |
|---|---|---|
| merge | none: as the model says | a merger |
| alone | `soft_prompt=False` | – |
| encoder-only | `question_in_prompt=False` | a merger that is trained beside the question (not LangBridge) |
| gate-off | `encoder_weight=1, llm_weight=1` | a gate |
| no-language | `language="unknown"` | a gate with a language input |

All modes share adapter, calculator and everything else. What this module does not know: how a model does it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Traits:
    """What of a model decides how it is asked. `language_input` is the gate's (`none`, `forced`, `soft`).

    `languages`: those that an encoder with source-language tokens (NLLB, M2M100) can be told, and the gate with it; empty for
    other encoders, which see for themselves.
    """

    method: str
    gate: bool = False
    language_input: str = "none"
    languages: frozenset[str] = frozenset()

    def told(self, mode: Mode, language: str) -> str | None:
        """What the model is told about a question in `language`; None where it is not asked for it, or does not know it."""
        if mode is ALONE or "language" in mode.options:
            return None
        return language if language in self.languages else None


@dataclass(frozen=True)
class Mode:
    """A way to ask. `title` is what tables and charts call it."""

    name: str
    title: str
    options: MappingProxyType[str, Any]


def _mode(name: str, title: str, **options: Any) -> Mode:
    return Mode(name, title, MappingProxyType(options))


MERGE = _mode("merge", "merge")
ALONE = _mode("alone", "LLM alone", soft_prompt=False)
ENCODER_ONLY = _mode("encoder-only", "encoder only", question_in_prompt=False)
GATE_OFF = _mode("gate-off", "gate off", encoder_weight=1.0, llm_weight=1.0)
NO_LANGUAGE = _mode("no-language", "no language embedding", language="unknown")

MODES = (MERGE, ALONE, ENCODER_ONLY, GATE_OFF, NO_LANGUAGE)
STANDARD = (MERGE, ALONE)


def why_not(mode: Mode, traits: Traits) -> str | None:
    """Why a model does not have `mode`; None where it has it."""
    if mode is ALONE:
        return None
    if traits.method == "mono":
        return "the method mono is the LLM alone"
    if mode is ENCODER_ONLY and traits.method == "langbridge":
        return "langbridge's merge is the soft prompt alone already"
    if mode in (GATE_OFF, NO_LANGUAGE) and not traits.gate:
        return f"the method {traits.method} has no gate"
    if mode is NO_LANGUAGE and traits.language_input == "none":
        return "this gate has no language embedding"
    return None


def available(wanted: Iterable[Mode], traits: Traits) -> tuple[list[Mode], list[tuple[Mode, str]]]:
    """Those of `wanted` that a model has, and the others with the reason why not."""
    has, lacks = [], []
    for mode in wanted:
        reason = why_not(mode, traits)
        if reason is None:
            has.append(mode)
        else:
            lacks.append((mode, reason))
    return has, lacks
