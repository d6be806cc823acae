"""Confidence intervals of scores and of paired differences."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ixtune.scores.case import Part

_RESAMPLES = 4000
_PERMUTATIONS = 10000
_LEVEL = 0.95
_SEED = 20190
Sums = npt.NDArray[np.float64]
"""[groups, 2]: numerator and denominator of all answers about one image."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Value with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return text such as `0.875 [0.830, 0.910]`."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True)
class Difference:
    """Second score minus first, with its 95 % interval and its p-value."""

    interval: Interval
    p: float


def interval(parts: Sequence[Part], groups: Sequence[Hashable]) -> Interval:
    """Return a score with its percentile bootstrap interval (Efron, Tibshirani 1993).

    Groups are resampled, not questions, since questions about one image are not independent. If all groups score alike,
    no resample differs, and the interval is Wilson's for that number of groups (Wilson 1927).

    Args:
        parts: Numerator and denominator of every answer.
        groups: Group of every answer, such as its image.

    Raises:
        ValueError: There is nothing to score.
    """
    sums_G2 = _sums(parts, groups)
    value = _quotient(sums_G2)
    if np.all(sums_G2[:, 0] == value * sums_G2[:, 1]):
        return _wilson(value, len(sums_G2))
    found = _resampled([sums_G2])[0]
    return Interval(value, *_limits(found))


def difference(first: Sequence[Part], second: Sequence[Part], groups: Sequence[Hashable]) -> Difference:
    """Return the paired difference `second - first` of two models on the same questions.

    The interval uses the same resamples for both. The p-value is that of a two-sided permutation test that swaps the
    models at random for each group (Fisher's; see Dror et al., ACL 2018); the observed difference counts as a
    permutation. If both score alike on every group, the interval is Wilson's for the share of groups on which they
    might differ.

    Raises:
        ValueError: There is nothing to score, or the two differ in number.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} answers cannot be paired")
    one_G2, two_G2 = _sums(first, groups), _sums(second, groups)
    value = _quotient(two_G2) - _quotient(one_G2)
    if np.array_equal(one_G2, two_G2):  # then no resample differs either, whatever their number
        bound = _wilson(0.0, len(one_G2)).high
        return Difference(Interval(0.0, -bound, bound), 1.0)
    before, after = _resampled([one_G2, two_G2])
    rng = np.random.default_rng(_SEED)
    at_least = 1
    for _ in range(_PERMUTATIONS):
        change_G1 = rng.random((len(one_G2), 1)) < 0.5
        other = _quotient(np.where(change_G1, one_G2, two_G2)) - _quotient(np.where(change_G1, two_G2, one_G2))
        at_least += abs(other) >= abs(value) - 1e-12
    return Difference(Interval(value, *_limits(after - before)), at_least / (_PERMUTATIONS + 1))


def _sums(parts: Sequence[Part], groups: Sequence[Hashable]) -> Sums:
    if not parts:
        raise ValueError("no answers to score")
    places: dict[Hashable, int] = {}
    rows = [places.setdefault(group, len(places)) for group in groups]
    sums_G2 = np.zeros((len(places), 2))
    np.add.at(sums_G2, rows, np.asarray(parts, dtype=float))
    return sums_G2


def _quotient(sums_G2: Sums) -> float:
    numerator, denominator = sums_G2.sum(axis=0)
    return float(numerator / denominator)


def _resampled(scored: Sequence[Sums]) -> list[npt.NDArray[np.float64]]:
    """Return scores of resamples, with the same groups in each for every model."""
    rng = np.random.default_rng(_SEED)
    count = len(scored[0])
    found: list[list[float]] = [[] for _ in scored]
    for _ in range(_RESAMPLES):
        drawn = rng.integers(0, count, count)
        for sums_G2, values in zip(scored, found, strict=True):
            values.append(_quotient(sums_G2[drawn]))
    return [np.asarray(values) for values in found]


def _limits(found: npt.NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(found, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def _wilson(value: float, count: int) -> Interval:
    z = 1.959963984540054
    middle = (value + z * z / (2 * count)) / (1 + z * z / count)
    spread = max(value * (1 - value), 0.0) / count + z * z / (4 * count * count)
    half = z * float(np.sqrt(spread)) / (1 + z * z / count)
    return Interval(value, min(value, middle - half), max(value, middle + half))
