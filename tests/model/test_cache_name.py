"""Test that the model takes its cache under the names that transformers uses before and from 5.24 on."""

from __future__ import annotations

import inspect

import pytest
import torch
from small_base import small_model
from transformers import DynamicCache
from transformers.masking_utils import create_causal_mask

from ixtune.model import cache_name
from ixtune.model.shared_prefix import SharedPrefixCache

IDS = torch.tensor([[1, 7, 5, 9, 11]])


def test_the_name_is_that_of_the_installed_transformers() -> None:
    assert cache_name.NAME in inspect.signature(create_causal_mask).parameters
    assert cache_name.named(None) == {cache_name.NAME: None}


@pytest.mark.parametrize("name", cache_name.NAMES)
def test_both_names_continue_a_cache(name: str) -> None:
    model = small_model().requires_grad_(False)
    expected = model(input_ids=IDS).logits[:, -1]
    cache = DynamicCache(config=model.config)
    first = model(input_ids=IDS[:, :3], use_cache=True, **{name: cache})
    assert first[cache_name.NAME] is cache
    assert cache.get_seq_length() == 3
    made = model(input_ids=IDS[:, 3:], **{name: cache}).logits[:, -1]
    torch.testing.assert_close(made, expected)
    headless = model.base_model(input_ids=IDS[:, :2], **{name: DynamicCache(config=model.config)})
    assert headless[cache_name.NAME].get_seq_length() == 2
    inputs = model.prepare_inputs_for_generation(IDS, crops="of the prompt", **{name: cache})
    assert inputs[cache_name.NAME] is cache
    assert "crops" not in inputs


def test_a_cache_of_prefixes_is_never_taken_for_one_of_linear_attention() -> None:
    assert not all(SharedPrefixCache([None], [3], 3).is_linear)
