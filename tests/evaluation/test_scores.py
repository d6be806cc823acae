"""Scores against hand-computed and published values."""

from __future__ import annotations

import pytest

from ixtune.evaluation.scores import exact_match, majority_answers, question_form, share


def test_wilson_interval_of_a_published_example() -> None:
    # Newcombe (1998), Statistics in Medicine 17:857, table I: 81 of 263, score method.
    result = share([True] * 81 + [False] * 182)
    assert (round(result.low, 4), round(result.high, 4)) == (0.2553, 0.3662)


def test_wilson_interval_stays_inside_zero_and_one() -> None:
    # Same table: 0 of 20 gives 0 to 0.1611.
    none = share([False] * 20)
    assert (round(none.low, 4), round(none.high, 4)) == (0.0, 0.1611)
    assert share([True] * 20).high == 1.0


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="no answers"):
        share([])


def test_exact_match_collapses_white_space_only() -> None:
    assert exact_match(" 12.8  C\n", "12.8 C")
    assert not exact_match("12.80", "12.8")
    assert not exact_match("Rain", "rain")


def test_the_majority_control_answers_each_form_of_question_from_the_others() -> None:
    questions = ["Sky on May 1?", "Sky on May 22?", "Sky on May 3?", "Wind on May 1?"]
    assert question_form(questions[0]) == question_form(questions[1])
    # the first sees two rains, each rain sees a sun and a rain (the first in order), the wind none of its own form
    assert majority_answers(questions, ["sun", "rain", "rain", "2.1"]) == ["rain", "sun", "sun", "rain"]


def test_the_majority_control_cannot_answer_itself() -> None:
    assert majority_answers(["a?", "b?"], ["1", "2"]) == ["2", "1"]
