"""Test NEFTune: size and positions of the noise, and that it is reproducible."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from adapters import section
from peft import PeftModel
from small_base import small_model

from ixtune.adapter import attach
from ixtune.training.step import neftune

WIDTH, ALPHA = 64, 5.0
IMAGE = torch.tensor([3, 4, 5, 6])  # in the first segment
ENDS = [12, 20, 60]


class Stub(torch.nn.Module):
    """Replace the decoder: return the inputs."""

    def forward(self, embeds_BTD: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return embeds_BTD


@pytest.fixture
def model() -> PeftModel:
    wrapped = attach.attach(small_model(), section("plain"))
    wrapped.get_base_model().model = Stub()
    neftune.enable(wrapped, ALPHA)
    return wrapped


def _noise(
    model: PeftModel, ends: list[int], image_rows: torch.Tensor | None = None, seed: int = 0, **more: Any
) -> torch.Tensor:
    """Return the noise added to each position."""
    torch.manual_seed(seed)
    boundaries = torch.tensor([0, *ends], dtype=torch.int32)
    embeds = torch.full((1, ends[-1], WIDTH), 2.0)
    decoder = model.get_base_model().model
    return (
        decoder(embeds, image_rows_I=image_rows, cu_seq_lens_q=boundaries, max_length_q=max(ends), **more) - embeds
    )[0]


def test_noise_is_uniform_up_to_alpha_over_root_of_text_length_and_width(model: PeftModel) -> None:
    noise = _noise(model.train(), ENDS, IMAGE)
    for start, stop, text in ((0, 12, 8), (12, 20, 8), (20, 60, 40)):
        bound = ALPHA / math.sqrt(text * WIDTH)
        segment = noise[start:stop].abs()
        assert 0.97 * bound < float(segment.max()) <= bound
        # the norm over a record is alpha / sqrt(3), whatever its length
        assert float(noise[start:stop].norm()) == pytest.approx(ALPHA / math.sqrt(3), rel=0.1)


def test_image_positions_get_no_noise(model: PeftModel) -> None:
    noise = _noise(model.train(), ENDS, IMAGE)
    assert not noise[IMAGE].any()
    rest = [row for row in range(60) if row not in IMAGE]
    assert noise[rest].all()


def test_packing_does_not_change_the_size_of_the_noise(model: PeftModel) -> None:
    packed, alone = _noise(model.train(), [8, 16, 24]), _noise(model, [8])
    torch.testing.assert_close(packed[:8], alone)


def test_a_shared_prefix_counts_towards_the_length_of_each_record(model: PeftModel) -> None:
    """A suffix gets the noise of its whole record, the prefix that of the mean record, a single segment its own."""
    noise = _noise(model.train(), [12, 20, 60, 80], IMAGE, parents=(-1, 0, 0, -1))
    for start, stop, text in ((0, 12, 8 + 24), (12, 20, 8 + 8), (20, 60, 8 + 40), (60, 80, 20)):
        bound = ALPHA / math.sqrt(text * WIDTH)
        assert 0.97 * bound < float(noise[start:stop].abs().max()) <= bound


def test_the_same_generator_state_gives_the_same_noise(model: PeftModel) -> None:
    assert torch.equal(_noise(model.train(), ENDS, seed=4), _noise(model, ENDS, seed=4))
    assert not torch.equal(_noise(model, ENDS, seed=4), _noise(model, ENDS, seed=5))


def test_evaluation_has_no_noise(model: PeftModel) -> None:
    assert not _noise(model.eval(), ENDS).any()


def test_the_whole_model_gets_noise_in_training_only() -> None:
    """PEFT calls the forward of the base without hooks, but that of the decoder below with them."""
    wrapped = attach.attach(small_model(), section("plain"))
    neftune.enable(wrapped, ALPHA)
    ids = torch.tensor([[1, 5, 6, 7, 8]])
    bounds = {"cu_seq_lens_q": torch.tensor([0, 5], dtype=torch.int32), "max_length_q": 5}

    def loss() -> float:
        return float(wrapped(input_ids=ids, labels=ids, use_cache=False, **bounds).loss.detach())

    assert loss() == loss()
    wrapped.train()
    assert loss() != loss()
