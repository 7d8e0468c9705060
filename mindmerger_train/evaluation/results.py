"""From generations to figures: shares per language and arm, their average, and what the differences are worth.

Only questions that every arm has answered count, so that an unfinished run compares like with like. What this module does not
know: models, how figures are shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal

import numpy as np

from mindmerger.errors import DataError
from mindmerger_train.evaluation.journal import Entry, Mark
from mindmerger_train.evaluation.modes import ALONE, MERGE, MODES
from mindmerger_train.evaluation.statistics import (
    Comparison,
    Floats,
    Interval,
    average,
    compare_averages,
    compare_shares,
    share_interval,
)

AVERAGE = "average"
# Their files are translations of each other, line by line.
PARALLEL = ("mgsm", "msvamp", "xcsqa", "xnli")


@dataclass(frozen=True)
class Share:
    """Right answers of an arm in one language, or (`average`) the mean of its languages' shares."""

    n: int
    right: int
    value: float
    interval: Interval


@dataclass(frozen=True)
class ArmResult:
    """One arm. `shares` and the comparisons are per language, and `average` last.

    `against_alone` compares with the LLM alone of the same model, `against_first` with the first arm (None for the one itself).
    """

    model: str
    mode: str
    title: str
    shares: dict[str, Share]
    against_alone: dict[str, Comparison] | None
    against_first: dict[str, Comparison] | None
    cut: int
    errors: int


@dataclass(frozen=True)
class Results:
    """Everything that the reports show. `asked` and `wanted` are questions, over all languages."""

    benchmark: str
    max_tokens: int
    calculator: bool | None
    models: dict[str, Mark]
    languages: tuple[str, ...]
    asked: int
    wanted: int
    arms: tuple[ArmResult, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def rows(self) -> tuple[str, ...]:
        return (*self.languages, AVERAGE)


ArmName = tuple[str, str]  # model, mode


@dataclass(frozen=True)
class _Grid:
    """Right or wrong of the questions that all arms have: for each arm (units, languages) of 0 and 1, and which exist."""

    languages: tuple[str, ...]
    asked: Floats
    right: dict[ArmName, Floats]


def evaluate(
    benchmark: str,
    max_tokens: int,
    calculator: bool | None,
    models: Mapping[str, Mark],
    arms: Sequence[ArmName],
    entries: Iterable[Entry],
    wanted: int | None = None,
    notes: Sequence[str] = (),
) -> Results:
    """Work out the results of `arms` (in their order). Raises DataError when no question was answered by all of them."""
    by_arm: dict[ArmName, dict[tuple[str, int], Entry]] = {arm: {} for arm in arms}
    for entry in entries:
        if (entry.model, entry.mode) in by_arm:
            by_arm[entry.model, entry.mode][entry.language, entry.index] = entry
    complete = set.intersection(*(set(own) for own in by_arm.values())) if by_arm else set()
    if not complete:
        raise DataError("no question has been answered in all modes yet: let mm-eval go on")
    grid = _grid(by_arm, sorted(complete))
    alone_of = _alone(arms, models)
    results = []
    for arm in arms:
        alone = alone_of.get(arm)
        own = [by_arm[arm][key] for key in complete]
        results.append(
            ArmResult(
                model=arm[0],
                mode=arm[1],
                title=_title(arm, arms),
                shares=_shares(grid, arm),
                against_alone=_compare(grid, arm, alone) if alone not in (None, arm) else None,
                against_first=_compare(grid, arm, arms[0]) if arm != arms[0] else None,
                cut=sum(entry.finish == "length" for entry in own),
                errors=sum(entry.error is not None for entry in own),
            )
        )
    seen = len(set.union(*(set(own) for own in by_arm.values())))
    return Results(
        benchmark, max_tokens, calculator, dict(models), grid.languages, len(complete), wanted or seen, tuple(results),
        tuple(notes),
    )  # fmt: skip


def _grid(by_arm: Mapping[ArmName, Mapping[tuple[str, int], Entry]], keys: Sequence[tuple[str, int]]) -> _Grid:
    languages = tuple(sorted({language for language, _ in keys}))
    kind = next(iter(next(iter(by_arm.values())).values())).kind
    units = {key: (key[1] if kind in PARALLEL else key) for key in keys}
    row_of = {unit: row for row, unit in enumerate(dict.fromkeys(units.values()))}
    places = [(row_of[units[key]], languages.index(key[0])) for key in keys]
    asked = np.zeros((len(row_of), len(languages)))
    asked[tuple(zip(*places, strict=True))] = 1
    right = {}
    for arm, own in by_arm.items():
        right[arm] = np.zeros_like(asked)
        right[arm][tuple(zip(*places, strict=True))] = [own[key].right for key in keys]
    return _Grid(languages, asked, right)


def _shares(grid: _Grid, arm: ArmName) -> dict[str, Share]:
    shares = {}
    for column, language in enumerate(grid.languages):
        n, right = int(grid.asked[:, column].sum()), int(grid.right[arm][:, column].sum())
        shares[language] = Share(n, right, right / n, share_interval(right, n))
    value, interval = average(grid.right[arm], grid.asked)
    shares[AVERAGE] = Share(int(grid.asked.sum()), int(grid.right[arm].sum()), value, interval)
    return shares


def _compare(grid: _Grid, arm: ArmName, other: ArmName | None) -> dict[str, Comparison]:
    assert other is not None
    comparisons = {}
    for column, language in enumerate(grid.languages):
        there = grid.asked[:, column] > 0
        first, second = (grid.right[name][there, column] > 0 for name in (arm, other))
        comparisons[language] = compare_shares(first, second)
    comparisons[AVERAGE] = compare_averages(grid.right[arm], grid.right[other], grid.asked)
    return comparisons


def _alone(arms: Sequence[ArmName], models: Mapping[str, Mark]) -> dict[ArmName, ArmName]:
    """For each arm the one in which its LLM was asked alone; models with the same LLM share it."""
    of_llm = {models[model].llm: (model, mode) for model, mode in arms if mode == ALONE.name}
    return {arm: of_llm[models[arm[0]].llm] for arm in arms if models[arm[0]].llm in of_llm}


def _title(arm: ArmName, arms: Sequence[ArmName]) -> str:
    """The mode; with several models the model too, but for an LLM alone that they share."""
    title = next((mode.title for mode in MODES if mode.name == arm[1]), arm[1])
    shared = arm[1] == ALONE.name and sum(mode == ALONE.name for _, mode in arms) == 1
    if shared or len({model for model, _ in arms}) == 1:
        return title
    return arm[0] if arm[1] == MERGE.name else f"{arm[0]}, {title}"


def percent(share: float, sign: str = "") -> str:
    """A share (or a difference of two) in per cent with one decimal, half rounded up.

    Every table prints figures with it, so that 0.2845 is 28.5 in all of them, however its sum came out in floating point.
    """
    rounded = Decimal(str(round(100 * share, 6))).quantize(Decimal("0.1"), ROUND_HALF_UP)
    return f"{rounded:{sign}}"
