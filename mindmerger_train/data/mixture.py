"""Mix sources by weight, and cut the endless stream of examples into batches of similar length.

Everything follows from the seed: the n-th batch is the same in every run, which is what a resumed run relies on.
"""

from __future__ import annotations

import itertools
import math
import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mindmerger.errors import DataError
from mindmerger_train.data.sources import Example

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """Examples, and the share of draws they get."""

    name: str
    examples: Sequence[Example]
    weight: float


def _endless(examples: Sequence[Example], generator: random.Random) -> Iterator[Example]:
    order = list(range(len(examples)))
    while True:
        generator.shuffle(order)
        for index in order:
            yield examples[index]


def draw(sources: Sequence[Source], seed: int) -> Iterator[Example]:
    """Endless stream: each draw picks a source by weight, then its next example; a source is reshuffled when used up.

    Raises DataError when a source is empty or its weight is not above 0.
    """
    for source in sources:
        if not 0 < source.weight < math.inf:
            raise DataError(f"the data source {source.name!r} has the weight {source.weight:g}: it must be above 0")
        if not source.examples:
            raise DataError(f"the data source {source.name!r} has no examples")
    generator = random.Random(seed)
    streams = [_endless(source.examples, random.Random(f"{seed}/{source.name}")) for source in sources]
    weights = [source.weight for source in sources]
    while True:
        yield next(generator.choices(streams, weights)[0])


def hold_out(sources: Sequence[Source], one_in: int = 64) -> tuple[list[Source], list[Source]]:
    """Split each source into what is trained on and what is held out, by a checksum of the example's origin or English text.

    The translations and variants of one question thus fall on the same side. Sources too small to lose an example are kept
    whole.
    """
    kept, held = [], []
    for source in sources:
        out: list[Example] = []
        rest: list[Example] = []
        for example in source.examples:
            checksum = zlib.crc32((example.origin or example.english or example.query).encode())
            (rest if checksum % one_in else out).append(example)
        kept.append(Source(source.name, rest or source.examples, source.weight))
        if out:
            held.append(Source(source.name, out, source.weight))
    return kept, held


def cut_by_length(rows: Iterable[T], length: Callable[[T], int], tokens: int) -> list[list[T]]:
    """Sort rows by length and cut them into batches of at most `tokens` positions, padding included."""
    cuts: list[list[T]] = []
    for row in sorted(rows, key=length):
        if not cuts or length(row) * (len(cuts[-1]) + 1) > tokens:
            cuts.append([])
        cuts[-1].append(row)
    return cuts


def batches(
    rows: Iterator[T], length: Callable[[T], int], tokens: int, longest: int, seed: int, pool: int = 1024
) -> Iterator[list[T]]:
    """Endless batches of at most `tokens` positions, padding included; rows over `longest` are left out.

    A pool of rows is sorted by length, cut, and the cuts shuffled, so that little is padding and no order remains.
    """
    generator = random.Random(seed)
    while True:
        cuts = cut_by_length((row for row in itertools.islice(rows, pool) if length(row) <= longest), length, tokens)
        generator.shuffle(cuts)
        yield from cuts
