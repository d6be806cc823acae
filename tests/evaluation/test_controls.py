"""Test the answers of the controls."""

from __future__ import annotations

from ixtune.evaluation.controls import majority_answers, question_forms


def test_the_majority_answer_of_a_question_form_comes_from_the_others() -> None:
    questions = ["Sky on May 1?", "Sky on May 22?", "Sky on May 3?", "Wind on May 1?"]
    assert question_forms(questions) == ["Sky on * #?"] * 3 + ["Wind on * #?"]
    # the first sees two rains, each rain sees a sun and a rain (the first in order), the wind none of its own form
    assert majority_answers(questions, ["sun", "rain", "rain", "2.1"]) == ["rain", "sun", "sun", "rain"]


def test_the_majority_control_never_uses_its_own_answer() -> None:
    assert majority_answers(["a?", "b?"], ["1", "2"]) == ["2", "1"]


def test_names_are_masked_only_if_forms_would_be_too_many() -> None:
    few = [f"What is the {word}?" for word in ("Betrag", "Name")]
    assert question_forms(few * 8) == few * 8
    assert question_forms(["Who leads France?", "Who leads New York?", "Is it 12?"]) == [
        "Who leads *?", "Who leads *?", "Is it #?"
    ]  # fmt: skip
    # one form for all would tell nothing
    assert question_forms(few) == few


def test_the_majority_control_picks_the_better_question_forms() -> None:
    by_name = ["Sky in May?", "Sky in May?", "Sky in Jan?", "Sky in Jan?"]
    assert majority_answers(by_name, ["sun", "sun", "snow", "snow"]) == ["sun", "sun", "snow", "snow"]
    whatever = ["Sky in May?", "Sky in Jan?", "Sky in Jul?"]
    assert majority_answers([*whatever, "Who?", "Who?", "Who?"], ["sun"] * 3 + ["a", "a", "b"])[:3] == ["sun"] * 3


def test_a_single_question_has_no_majority_answer() -> None:
    assert majority_answers(["q"], ["a"]) == [""]
