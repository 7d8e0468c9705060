"""Intervals and tests for shares of right answers, and for the difference between two ways of asking the same questions.

Sources:
* percentile bootstrap: Efron & Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13;
* where all answers are right or all are wrong, resampling knows no spread: the exact binomial interval of Clopper & Pearson
  (Biometrika 1934), whose bounds have a closed form there;
* per language: McNemar's test (Psychometrika 1947) in its exact form, a two-sided binomial test on the questions on which
  the two disagree;
* average over languages: a paired sign-flip permutation test; the added 1 in its p-value is Phipson & Smyth (2010).

Questions of a benchmark that are translations of each other are not independent between languages: the average is
resampled, and flipped, by *unit*, which is the question in all its languages.

What this module does not know: models, languages' names, files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 10_000
_CHUNK = 500  # resamples at a time: XNLI has 5,010 units


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Of two ways of asking: difference of the shares, its interval, and the p-value of "there is none".

    `only_first` and `only_second` count the questions that one got right and the other did not. The interval is None where
    there is no such question: resampling would call the difference exactly 0.
    """

    difference: float
    interval: Interval | None
    p: float
    only_first: int
    only_second: int


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p-value: 2·P(X ≤ min(b, c)), X ~ Binomial(b + c, ½), at most 1."""
    n, k = only_first + only_second, min(only_first, only_second)
    ways = tail = 1  # "n choose i" and its sum
    for i in range(k):
        ways = ways * (n - i) // (i + 1)
        tail += ways
    return float(min(1.0, 2 * tail / 2**n))  # of whole numbers, so right for any n


def share_interval(right: int, n: int, seed: int = 0) -> Interval:
    """Bootstrap interval of `right` / `n`. Resampling n yes/no answers is drawing from Binomial(n, right / n)."""
    if right in (0, n):
        return _without_spread(right == n, n)
    draws = np.random.default_rng(seed).binomial(n, right / n, RESAMPLES) / n
    return _percentiles(draws)


def average(right: Floats, asked: Floats, seed: int = 0) -> tuple[float, Interval]:
    """Mean over languages of their shares of right answers, and its bootstrap interval by unit.

    `right` and `asked` are (units, languages): 1 where a unit's question in that language was right, was asked at all.
    """
    value = _mean_of_shares(right.sum(0), asked.sum(0))
    total, n = right.sum(), asked.sum()
    if total in (0, n):
        return value, _without_spread(total == n, int((asked.sum(1) > 0).sum()))
    return value, _percentiles(_resampled(right, asked, seed))


def compare_shares(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_], seed: int = 0) -> Comparison:
    """`first` against `second` on the same questions of one language, (n,) each: exact McNemar, paired bootstrap."""
    b, c, n = int((first & ~second).sum()), int((second & ~first).sum()), len(first)
    interval = None
    if b + c:
        draws = np.random.default_rng(seed).multinomial(n, [b / n, c / n, 1 - (b + c) / n], RESAMPLES)
        interval = _percentiles((draws[:, 0] - draws[:, 1]) / n)
    return Comparison((b - c) / n, interval, mcnemar_exact(b, c), b, c)


def compare_averages(first: Floats, second: Floats, asked: Floats, seed: int = 0) -> Comparison:
    """`first` against `second`, averaged over languages; arrays (units, languages) as in `average`."""
    gain = first - second
    b, c = int((gain > 0).sum()), int((gain < 0).sum())
    value = _mean_of_shares(gain.sum(0), asked.sum(0))
    if not b + c:
        return Comparison(value, None, 1.0, b, c)
    return Comparison(value, _percentiles(_resampled(gain, asked, seed)), _sign_flip(gain, asked, seed), b, c)


def _sign_flip(gain: Floats, asked: Floats, seed: int) -> float:
    """Under "no difference" the two ways of asking are exchangeable within a unit: all its differences change sign."""
    count = asked.sum(0)
    held = count > 0
    parts = (gain[:, held] / count[held]).sum(1)
    parts = parts[parts != 0]
    observed = abs(parts.sum())
    rng = np.random.default_rng(seed)
    reached = 0
    for start in range(0, RESAMPLES - 1, _CHUNK):
        size = min(_CHUNK, RESAMPLES - 1 - start)
        signs = rng.integers(0, 2, (size, len(parts)), dtype=np.int8) * 2 - 1
        # a hair below, so that sums of the same parts in another order count as equal
        reached += int((np.abs(signs @ parts) >= observed * (1 - 1e-9)).sum())
    return (1 + reached) / RESAMPLES


def _resampled(values: Floats, asked: Floats, seed: int) -> Floats:
    """Means of shares, one for each resample of the units: (RESAMPLES,).

    Units are drawn among those that exist in the same languages, so that every resample has as many questions of each language
    as the sample has: which languages there are is not by chance.
    """
    rng = np.random.default_rng(seed)
    totals = np.zeros((RESAMPLES, values.shape[1]))
    patterns, pattern_of = np.unique(asked, axis=0, return_inverse=True)
    for pattern in range(len(patterns)):
        own = values[pattern_of.ravel() == pattern]
        chances = np.full(len(own), 1 / len(own))
        for start in range(0, RESAMPLES, _CHUNK):
            times = rng.multinomial(len(own), chances, min(_CHUNK, RESAMPLES - start))
            totals[start : start + len(times)] += times @ own
    return _means_of_shares(totals, np.broadcast_to(asked.sum(0), totals.shape))


def _mean_of_shares(values: Floats, asked: Floats) -> float:
    return float(_means_of_shares(values[None], asked[None])[0])


def _means_of_shares(values: Floats, asked: Floats) -> Floats:
    """Row by row, over the languages that have questions. (n, languages) → (n,)."""
    held = asked > 0
    shares = np.divide(values, asked, out=np.zeros_like(values), where=held)
    means: Floats = shares.sum(1) / np.maximum(1, held.sum(1))
    return means


def _percentiles(draws: Floats) -> Interval:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def _without_spread(all_right: bool, n: int) -> Interval:
    bound = ((1 - LEVEL) / 2) ** (1 / n)
    return Interval(bound, 1.0) if all_right else Interval(0.0, 1 - bound)
