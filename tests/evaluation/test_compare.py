"""The blind control: other pictures, same questions."""

from __future__ import annotations

from typing import Any

import pytest

from ixtune.data.record import Turn
from ixtune.errors import IxtuneError
from ixtune.evaluation.compare import Questions, swapped
from ixtune.evaluation.generate import Prompt


def _prompt(question: str, *paths: str) -> Prompt:
    pictures: tuple[dict[str, Any], ...] = tuple({"root": 0, "path": path, "tokens": 313} for path in paths)
    return Prompt((Turn("user", question),), pictures)


def _questions(*prompts: Prompt) -> Questions:
    return Questions(prompts, tuple("x" for _ in prompts), tuple(str(i) for i in range(len(prompts))))


def test_every_record_gets_pictures_of_another_and_keeps_its_question() -> None:
    before = _questions(
        _prompt("a", "1"), _prompt("b", "1"), _prompt("c", "2"), _prompt("d", "3", "4"), _prompt("e", "5", "6")
    )
    after = swapped(before)
    assert [p.turns for p in after.prompts] == [p.turns for p in before.prompts]
    assert all(a.paths != b.paths for a, b in zip(after.prompts, before.prompts, strict=True))
    assert all(len(a.paths) == len(b.paths) for a, b in zip(after.prompts, before.prompts, strict=True))
    assert swapped(before).prompts == after.prompts, "the same seed swaps in the same way"


def test_records_without_pictures_stay_as_they_are() -> None:
    before = _questions(_prompt("a"), _prompt("b", "1"), _prompt("c", "2"))
    assert swapped(before).prompts[0] == before.prompts[0]


def test_a_set_with_one_picture_cannot_be_swapped_and_says_so() -> None:
    with pytest.raises(IxtuneError, match="records with different pictures"):
        swapped(_questions(_prompt("a", "1"), _prompt("b", "1")))
