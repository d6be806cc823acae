"""Test the blind control: other images, same questions."""

from __future__ import annotations

from typing import Any

import pytest

from ixtune.answering.prompt import Prompt
from ixtune.data.record import Turn
from ixtune.errors import IxtuneError
from ixtune.evaluation.compare import Answers, judged, swapped
from ixtune.evaluation.exam import ExamQuestion


def _prompt(question: str, *paths: str) -> Prompt:
    images: tuple[dict[str, Any], ...] = tuple({"root": 0, "path": path, "tokens": 313} for path in paths)
    return Prompt((Turn("user", question),), images)


def _questions(*prompts: Prompt) -> list[ExamQuestion]:
    return [ExamQuestion(str(i), prompt, ("x",)) for i, prompt in enumerate(prompts)]


def test_every_question_gets_other_images_and_keeps_its_text() -> None:
    before = _questions(
        _prompt("a", "1"), _prompt("b", "1"), _prompt("c", "2"), _prompt("d", "3", "4"), _prompt("e", "5", "6")
    )
    after = swapped(before)
    assert [prompt.turns for prompt in after] == [question.prompt.turns for question in before]
    for blind, question in zip(after, before, strict=True):
        assert set(blind.paths).isdisjoint(question.prompt.paths)
        assert len(blind.paths) == len(question.prompt.paths)
    assert swapped(before) == after, "the same seed swaps in the same way"


def test_a_unique_image_count_is_filled_from_several_questions() -> None:
    alone = swapped(_questions(_prompt("a", "1"), _prompt("b", "2"), _prompt("c", "1", "3", "4")))[2]
    assert alone.paths == ((0, "2"),) * 3


def test_questions_without_images_are_unchanged() -> None:
    before = _questions(_prompt("a"), _prompt("b", "1"), _prompt("c", "2"))
    assert swapped(before)[0] == before[0].prompt


def test_a_set_with_one_image_cannot_be_swapped() -> None:
    with pytest.raises(IxtuneError, match="questions about different images"):
        swapped(_questions(_prompt("a", "1"), _prompt("b", "1")))


def test_any_reference_counts_and_models_are_compared_with_the_first() -> None:
    questions = [
        ExamQuestion("0", _prompt("a", "1"), ("two", "2")),
        ExamQuestion("1", _prompt("b", "2"), ("B",), {"A": "dog", "B": "cat"}, "animals"),
    ]
    answered = [
        Answers("base", ("no", "(A)")),
        Answers("one", ("2", "B. cat")),
        Answers("two", ("two", "A")),
        Answers("one, images swapped", ("2", "A"), control=True),
        Answers("majority answer", ("2", "A"), control=True),
    ]
    found = judged(questions, answered, ("choice_accuracy", "exact_match"))
    exact = {one["name"]: one["scores"]["exact_match"]["value"] for one in found["results"]}
    assert (exact["base"], exact["one"], exact["two"]) == (0, 0.5, 0.5)
    assert found["answers"][1]["scores"]["one"]["choice_accuracy"] == 1
    assert (found["answers"][1]["kind"], found["answers"][1]["options"]) == ("animals", {"A": "dog", "B": "cat"})
    assert [(one["name"], one["than"]) for one in found["comparisons"]][::2] == [
        ("one", "base"),
        ("two", "base"),
        ("one", "one, images swapped"),
        ("one", "majority answer"),
        ("two", "majority answer"),
    ]


def test_a_loss_too_large_for_a_perplexity_gets_none() -> None:
    questions = _questions(_prompt("a", "1"))
    losses = {"base": 1e4, "b": 0.0, "c": float("nan"), "d": None}
    found = judged(questions, [Answers(name, ("x",), loss=loss) for name, loss in losses.items()], ("exact_match",))
    assert [one["perplexity"] for one in found["results"]] == [None, 1.0, None, None]
    assert [one["loss"] for one in found["results"]] == [1e4, 0.0, None, None]
