"""Test prompts of different lengths in one call of `generate`, and where an answer ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ixtune.model import cache_name
from ixtune.model.generation import generate, until_stop


class Echo(torch.nn.Linear):
    """Record the inputs and always answer 7, 8."""

    def generate(self, **given: Any) -> torch.Tensor:
        self.given = given
        ids = given["input_ids"]
        return torch.cat([ids, torch.tensor([[7, 8]] * len(ids))], dim=1)


def test_prompts_are_left_padded_and_the_padding_is_masked():
    model = Echo(1, 1)
    made = generate(model, [[1, 2, 3], [4]], [None, None], stops=(8, 9), pad_id=0, max_new_tokens=2)
    assert made == [[7, 8], [7, 8]], "the prompts are not part of the answers"
    assert model.given["input_ids"].tolist() == [[1, 2, 3], [0, 0, 4]]
    assert model.given["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert (model.given["eos_token_id"], model.given["pad_token_id"]) == ([8, 9], 0)
    assert (model.given["use_cache"], model.given["max_new_tokens"]) == (True, 2)
    assert model.given[cache_name.NAME] is None, "without images transformers makes the cache"


@pytest.mark.parametrize(
    ("ids", "said", "ended"), [([5, 6, 9, 0, 9], [5, 6], True), ([5, 6], [5, 6], False), ([8], [], True)]
)
def test_an_answer_ends_before_the_first_stop_token(ids: list[int], said: list[int], ended: bool):
    assert until_stop(ids, (8, 9)) == (said, ended)
