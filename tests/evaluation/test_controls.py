"""What the controls answer."""

from __future__ import annotations

from ixtune.evaluation.controls import majority_answers, question_form


def test_the_majority_control_answers_each_form_of_question_from_the_others() -> None:
    questions = ["Sky on May 1?", "Sky on May 22?", "Sky on May 3?", "Wind on May 1?"]
    assert question_form(questions[0]) == question_form(questions[1])
    # the first sees two rains, each rain sees a sun and a rain (the first in order), the wind none of its own form
    assert majority_answers(questions, ["sun", "rain", "rain", "2.1"]) == ["rain", "sun", "sun", "rain"]


def test_the_majority_control_cannot_answer_itself() -> None:
    assert majority_answers(["a?", "b?"], ["1", "2"]) == ["2", "1"]
