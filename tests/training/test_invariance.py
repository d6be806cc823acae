"""Test that a step depends only on its records, not on packs, their order, accumulation, padding or recomputation.

Equal means 1e-6 of each tensor's norm, in fp32. The rank is 16: MKL's product for the gradient of a B of rank 8 or less
sums over the tokens one by one, so that putting the records in another order alone moves it by 3e-6.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import BASE, EXACT, Gradients, distance, gradients, make_trainer, mixed_set, stir
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from small_base import small_model
from torch.nn.functional import cross_entropy

from ixtune.adapter import attach
from ixtune.data.prepared.training_set import TrainingSet
from ixtune.data.text.template import expand
from ixtune.model import attention
from ixtune.model.loading import load_base
from ixtune.recipe.recipe import AdapterSection
from ixtune.training.batch import ImageSource, make_batch, sample_of
from ixtune.training.step.sampler import EpochPermutation

RECORDS = range(5)  # two with an image, one with the fewest supervised tokens, one with the most, one between
UNCLIPPED = "training.max_grad_norm=1e9"
STANDING = ("training.learning_rate=1e-30", UNCLIPPED)  # the weights stay what they are


@pytest.fixture(scope="module")
def training_set(tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    loaded = TrainingSet.load([mixed_set(tmp_path_factory.mktemp("set"))])
    assert max(loaded.supervised) > 50 * min(loaded.supervised)
    return loaded


def steps(
    folder: Path, training_set: TrainingSet, packs: Sequence[Sequence[int]], *changes: str
) -> tuple[list[dict[str, torch.Tensor]], list[float]]:
    """Return gradients and losses of each step of the real trainer."""
    trainer = make_trainer(folder, training_set, packs, *EXACT, UNCLIPPED, *changes)
    stir(trainer.model)
    kept = Gradients()
    trainer.add_callback(kept)
    trainer.train()
    return kept.steps, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def one_step(
    folder: Path, training_set: TrainingSet, packs: Sequence[Sequence[int]], *changes: str
) -> tuple[dict[str, torch.Tensor], float]:
    (found,), (loss,) = steps(folder, training_set, packs, f"training.gradient_accumulation={len(packs)}", *changes)
    return found, loss


@pytest.fixture(scope="module")
def whole(training_set: TrainingSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], float]:
    """Train on all records in one pack."""
    return one_step(tmp_path_factory.mktemp("whole"), training_set, [RECORDS])


def adapted() -> PeftModel:
    torch.manual_seed(0)
    model, _ = load_base(BASE, quantize=False, dtype=torch.float32)
    wrapped = attach.attach(model, AdapterSection(rank=16, alpha=16, dropout=0, quantize="none"))
    stir(wrapped)
    return wrapped.train()


@pytest.mark.parametrize(
    "packs",
    [
        pytest.param([[0], [1], [2], [3], [4]], id="batches of one"),
        pytest.param([[2, 3], [0, 1, 4]], id="the shortest beside the longest"),
        pytest.param([[2], [0, 3], [1, 4]], id="one supervised token to a micro-batch"),
        pytest.param([[3], [0], [2, 1], [4]], id="images apart"),
        pytest.param([[4, 3, 2, 1, 0]], id="another order"),
    ],
)
def test_the_gradient_does_not_depend_on_packs_and_accumulation(
    whole: tuple[dict[str, torch.Tensor], float], training_set: TrainingSet, tmp_path: Path, packs: list[list[int]]
) -> None:
    found, loss = one_step(tmp_path, training_set, packs)
    assert distance(found, whole[0]) < 1e-6
    assert loss == pytest.approx(whole[1], rel=1e-6)


def test_the_gradient_on_nf4_does_not_depend_on_packs(training_set: TrainingSet, tmp_path: Path) -> None:
    together, loss = one_step(tmp_path / "one", training_set, [RECORDS], "adapter.quantize=nf4")
    apart, other = one_step(tmp_path / "two", training_set, [[2, 1, 3], [0, 4]], "adapter.quantize=nf4")
    assert distance(apart, together) < 1e-6
    assert other == pytest.approx(loss, rel=1e-6)


def test_recomputing_activations_changes_nothing(
    whole: tuple[dict[str, torch.Tensor], float], training_set: TrainingSet, tmp_path: Path
) -> None:
    found, loss = one_step(tmp_path, training_set, [RECORDS], "training.gradient_checkpointing=true")
    assert distance(found, whole[0]) < 1e-6
    assert loss == pytest.approx(whole[1], rel=1e-6)


def padded(training_set: TrainingSet, indices: Sequence[int]) -> tuple[dict[str, Any], torch.Tensor]:
    """Return a plain batch as in other tools: rows padded to the longest, a mask, labels."""
    rows = [training_set.record(index) for index in indices]
    expanded = [expand(sample_of(row)) for row in rows]
    longest = max(len(ids) for ids, _ in expanded)
    ids, mask, labels = (torch.full((len(rows), longest), fill) for fill in (2, 0, -100))
    for number, (tokens, targets) in enumerate(expanded):
        ids[number, : len(tokens)] = torch.tensor(tokens)
        mask[number, : len(tokens)] = 1
        labels[number, : len(tokens)] = torch.tensor(targets)
    return {"input_ids": ids, "attention_mask": mask, **ImageSource(training_set.files).of(rows)}, labels


def test_packed_equals_padded_with_full_logits(
    whole: tuple[dict[str, torch.Tensor], float], training_set: TrainingSet
) -> None:
    """Compare the loss on supervised rows of a pack with cross-entropy over all logits of a padded batch."""
    model = adapted()
    batch, labels = padded(training_set, RECORDS)
    logits = model(**batch, use_cache=False).logits
    loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(whole[1], rel=1e-6)
    # other kernels sum in another order: 1.2e-6 was measured
    assert distance(gradients(model), whole[0]) < 5e-6


def test_the_last_step_of_an_epoch_weights_its_tokens_like_any_other(training_set: TrainingSet, tmp_path: Path) -> None:
    """Accumulate five packs by two: the third step has one micro-batch, and the gradient of its records alone."""
    packs = [[index] for index in RECORDS]
    found, losses = steps(
        tmp_path / "run", training_set, packs,
        "training.max_steps=null", "training.epochs=1", "training.gradient_accumulation=2", *STANDING,
    )  # fmt: skip
    order = list(EpochPermutation(len(packs), 0))
    windows = [order[:2], order[2:4], order[4:]]
    assert len(found) == len(windows)
    model = adapted()
    images = ImageSource(training_set.files)
    for step, loss, window in zip(found, losses, windows, strict=True):
        model.zero_grad()
        wanted = model(**make_batch([training_set.record(index) for index in window], images), use_cache=False).loss
        wanted.backward()
        assert distance(step, gradients(model)) < 1e-6
        assert loss == pytest.approx(float(wanted.detach()), rel=1e-6)


def text_record(length: int, seed: int) -> dict[str, Any]:
    """Return a stored row without images, with all but its first tokens supervised."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 150, (length,), generator=generator).tolist()
    return {
        "token_ids": tokens, "picture_slots": [], "pictures": [],
        "supervised_starts": [length // 2], "supervised_ends": [length],
    }  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(2, 30), min_size=1, max_size=8))
def test_segments_are_contiguous_and_separate(lengths: list[int]) -> None:
    records = [text_record(length, seed) for seed, length in enumerate(lengths)]
    batch = make_batch(records, ImageSource(files=None))  # type: ignore[arg-type] # no image is asked for
    bounds = batch["cu_seq_lens_q"].tolist()
    assert bounds[0] == 0
    assert torch.tensor(bounds).diff().tolist() == lengths
    assert batch["max_length_q"] == max(lengths)
    assert batch["input_ids"].shape == batch["position_ids"].shape == (1, sum(lengths))
    rows, targets = batch["supervised"]
    asked = iter(zip(rows.tolist(), targets.tolist(), strict=True))
    for record, start, stop in zip(records, bounds, bounds[1:], strict=False):
        assert batch["input_ids"][0, start:stop].tolist() == record["token_ids"]
        assert batch["position_ids"][0, start:stop].tolist() == list(range(stop - start))
        for at in range(max(record["supervised_starts"][0], 1), stop - start):
            row, target = next(asked)
            assert start <= row == start + at - 1 < stop - 1
            assert target == record["token_ids"][at]
    assert next(asked, None) is None


def test_a_segment_does_not_see_its_neighbors() -> None:
    """Its hidden states are the same next to any other segments."""
    model = small_model()
    model.set_attn_implementation(attention.NAME)
    mine = text_record(17, 0)
    images = ImageSource(files=None)  # type: ignore[arg-type]

    def states(before: int, after: int) -> torch.Tensor:
        others = [text_record(length, 90 + length) for length in (before, after)]
        records = [others[0], mine, others[1]] if before else [mine]
        batch = make_batch(records, images)
        batch.pop("supervised")
        with torch.no_grad():
            hidden = model.model(
                model.model.tok_embeddings(batch.pop("input_ids")), image_rows_I=None, use_cache=False, **batch
            )[0]
        return hidden[0, before : before + 17]

    alone = states(0, 0)
    for before, after in ((5, 9), (23, 3)):
        difference = (states(before, after) - alone).norm() / alone.norm()
        assert float(difference) < 1e-6
