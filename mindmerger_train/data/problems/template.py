"""Templates with choices: text that expands to one of many wordings.

* `[one|two|]`: one of the parts, nested at will, each as likely as the others;
* `<walks|walked>`: the part of the story's tense (0 present, 1 past);
* `{slot}`: handed to whoever renders.

What this module does not know: what a slot means, languages, numbers.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from mindmerger.errors import DataError


@dataclass(frozen=True)
class Choice:
    """Parts to choose from; `by_tense`: the story's tense chooses, not chance."""

    parts: tuple[tuple[Node, ...], ...]
    by_tense: bool


@dataclass(frozen=True)
class Slot:
    """What stood between braces."""

    body: str


Node = str | Choice | Slot
_CLOSING = {"[": "]", "<": ">"}


@cache
def parse(template: str) -> tuple[Node, ...]:
    """The template's tree. Raises DataError when its brackets do not match."""
    parts, place = _parts(template, 0, "")
    if place != len(template) or len(parts) != 1:
        raise DataError(f"the brackets of the template {template!r} do not match, or a | stands outside of them")
    return parts[0]


def _parts(template: str, place: int, closing: str) -> tuple[list[tuple[Node, ...]], int]:
    parts: list[tuple[Node, ...]] = []
    nodes: list[Node] = []
    text = ""
    while place < len(template) and template[place] != closing:
        mark = template[place]
        place += 1
        if mark not in "[<{|]>}":
            text += mark
            continue
        if text:
            nodes.append(text)
            text = ""
        if mark == "|":
            parts.append(tuple(nodes))
            nodes = []
        elif mark == "{":
            end = template.find("}", place)
            if end < 0:
                raise DataError(f"a {{ of the template {template!r} is not closed")
            nodes.append(Slot(template[place:end]))
            place = end + 1
        elif mark in _CLOSING:
            inner, place = _parts(template, place, _CLOSING[mark])
            if place >= len(template):
                raise DataError(f"a {mark} of the template {template!r} is not closed")
            nodes.append(Choice(tuple(inner), mark == "<"))
            place += 1
        else:
            raise DataError(f"a {mark} of the template {template!r} was never opened")
    if text:
        nodes.append(text)
    parts.append(tuple(nodes))
    return parts, place


def expand(nodes: tuple[Node, ...], rng: random.Random, tense: int, fill: Callable[[str], str]) -> str:
    """One wording; `fill` turns a slot's body into text and is called in the order of the text."""
    out = []
    for node in nodes:
        if isinstance(node, str):
            out.append(node)
        elif isinstance(node, Slot):
            out.append(fill(node.body))
        else:
            part = node.parts[min(tense, len(node.parts) - 1)] if node.by_tense else rng.choice(node.parts)
            out.append(expand(part, rng, tense, fill))
    return "".join(out)


def slots(nodes: tuple[Node, ...]) -> set[str]:
    """The bodies of all slots, in whatever part they stand."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, Slot):
            found.add(node.body)
        elif isinstance(node, Choice):
            for part in node.parts:
                found |= slots(part)
    return found


def count(nodes: tuple[Node, ...]) -> int:
    """How many different wordings there are (of one tense)."""
    product = 1
    for node in nodes:
        if isinstance(node, Choice):
            numbers = [count(part) for part in node.parts]
            product *= max(numbers) if node.by_tense else sum(numbers)
    return product
