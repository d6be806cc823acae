"""Test intervals and the paired test on cases with known results."""

from __future__ import annotations

import random
from math import comb

import pytest

from ixtune.scores.case import Part
from ixtune.scores.intervals import difference, interval


def hits(count: int, of: int) -> list[Part]:
    """Return `of` answers, the first `count` of them right."""
    return [(float(number < count), 1.0) for number in range(of)]


def test_the_bootstrap_interval_of_a_proportion_is_near_the_normal_one() -> None:
    found = interval(hits(120, 200), range(200))
    assert found.value == 0.6
    half = 1.96 * (0.6 * 0.4 / 200) ** 0.5
    assert found.low == pytest.approx(0.6 - half, abs=0.01)
    assert found.high == pytest.approx(0.6 + half, abs=0.01)


def test_all_correct_answers_still_have_an_uncertain_lower_bound() -> None:
    found = interval(hits(20, 20), range(20))
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(0.8389, abs=1e-4)  # Wilson's bound for 20 of 20


def test_questions_about_one_image_are_resampled_together() -> None:
    parts = hits(50, 100)
    alone = interval(parts, range(100))
    together = interval(parts, [number // 10 for number in range(100)])
    assert together.high - together.low > 2.5 * (alone.high - alone.low)


def test_a_paired_difference_is_more_certain_than_two_intervals() -> None:
    before, after = hits(100, 200), hits(112, 200)
    found = difference(before, after, range(200))
    assert found.interval.value == pytest.approx(0.06)
    assert found.interval.low > 0
    assert found.p == pytest.approx(2 * 0.5**12, abs=4e-4)  # all 12 that differ go one way
    assert interval(before, range(200)).high > interval(after, range(200)).low


def test_the_permutation_test_on_hits_equals_the_sign_test() -> None:
    """With 9 better and 3 worse answers, compare with the exact two-sided binomial probability."""
    before = hits(3, 12)
    after = [(1 - part[0], 1.0) for part in before]
    exact = 2 * sum(comb(12, k) for k in range(9, 13)) / 2**12
    assert difference(before, after, range(12)).p == pytest.approx(exact, abs=0.015)


def test_equal_answers_do_not_differ() -> None:
    found = difference(hits(5, 9), hits(5, 9), range(9))
    assert (found.interval.value, found.p) == (0, 1)
    assert found.interval.low < 0 < found.interval.high


def test_the_interval_covers_the_true_value_at_its_stated_rate() -> None:
    rng = random.Random(1)
    covered = 0
    for _ in range(100):
        parts = [(float(rng.random() < 0.7), 1.0) for _ in range(80)]
        found = interval(parts, range(80))
        covered += found.low <= 0.7 <= found.high
    assert 88 <= covered <= 99


def test_no_answers_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="no answers"):
        interval([], [])
    with pytest.raises(ValueError, match="cannot be paired"):
        difference(hits(1, 2), hits(1, 3), range(2))


def test_equal_scores_on_few_images_leave_room_for_a_difference():
    same = [(1.0, 1.0), (0.0, 1.0), (1.0, 1.0)]
    few, many = (difference(same * n, same * n, range(3 * n)) for n in (1, 100))
    assert (few.interval.value, few.p) == (0, 1)
    assert few.interval.low == -few.interval.high
    assert 0.5 < few.interval.high < 0.6  # Wilson's for none of three
    assert many.interval.high < 0.02
