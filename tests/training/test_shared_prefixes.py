"""Test that shared prefixes are computed once, and that training equals that on separate records."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from small_base import stretched
from small_groups import Pixels, prefixes_of, shared_batch, stored
from small_pack import gradients, small_adapter

from ixtune.adapter.low_memory import lean_lora
from ixtune.data import shared_prefixes
from ixtune.data.shared_prefixes import Group
from ixtune.data.text.template import expand
from ixtune.planning import memory_options
from ixtune.planning.memory_options import MemoryOptions
from ixtune.training.batch import make_batch, sample_of
from ixtune.training.monitoring.validation import mean_loss
from ixtune.training.step.memory_fallback import step_in_parts

Rows = list[dict[str, Any]]
LOSS, GRADIENT = 1e-6, 1e-5  # of the loss, and of the largest number in each gradient


@pytest.fixture(autouse=True, scope="module")
def _short_prefixes_count() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_prefixes, "MIN_SHARED_TOKENS", 2)
        yield


def learned(model: PeftModel, batches: list[dict[str, Any]], total: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return the loss and all gradients of one optimizer step."""
    torch.manual_seed(seed)
    losses = [model(**batch, use_cache=False, num_items_in_batch=total).loss for batch in batches]
    loss = torch.stack(losses).sum()
    loss.backward()
    return {"loss": loss.detach(), **gradients(model)}


def check(model: PeftModel, rows: Rows, source: Pixels | None = None) -> dict[str, Any]:
    """Compare a pack that shares prefixes with the separate records, and return the pack."""
    source = source or Pixels()
    batch = shared_batch(rows, source)
    apart = [make_batch([row], source) for row in rows]
    total = sum(len(one["supervised"][1]) for one in apart)
    assert sorted(batch["supervised"][1].tolist()) == sorted(t for one in apart for t in one["supervised"][1].tolist())
    assert batch["input_ids"].numel() < sum(one["input_ids"].numel() for one in apart) or "parents" not in batch
    found, wanted = learned(model, [batch], total), learned(model, apart, total)
    assert found.keys() == wanted.keys()
    assert float((found.pop("loss") / wanted["loss"] - 1).abs()) <= LOSS
    for name, gradient in found.items():
        assert float((gradient - wanted[name]).abs().max()) <= GRADIENT * float(wanted[name].abs().max()), name
    return batch


words = st.lists(st.integers(3, 6), max_size=5)
# What a family has in common, and of each member what follows and how many of its last tokens are supervised.
families = st.lists(
    st.tuples(
        st.lists(st.sampled_from([3, 4, 5, 6, "a", "b"]), max_size=5),
        st.lists(st.tuples(words, st.integers(1, 7)), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=12, deadline=None)
@given(families)
def test_a_pack_with_shared_prefixes_gives_the_gradient_of_its_records(
    found: list[tuple[list[Any], list[tuple[list[int], int]]]],
) -> None:
    rows = []
    for common, members in found:
        for suffix, asked in members:
            stream = [1, *common, *suffix, 7, 2]
            text = sum(isinstance(element, int) for element in stream)
            rows.append(stored(stream, [(max(1, text - asked), text)]))
    check(small_adapter(), rows)


# One image with three questions of which one has two answers; two images with the first one in common; a conversation
# of two turns that begins as another; text alone; and an image with one question.
ROWS = [
    stored([1, 3, "a", 10, 11, 12, 13, 14, 2], [(4, 7)]),
    stored([1, 3, "a", 10, 11, 12, 13, 15, 2], [(4, 7)]),  # another answer, which begins alike
    stored([1, 3, "a", 20, 21, 22, 2], [(4, 6)]),
    stored([1, 4, "b", 30, "c", 31, 32, 2], [(4, 6)]),
    stored([1, 4, "b", 30, "d", 31, 33, 34, 2], [(4, 7)]),
    stored([1, 40, 41, 42, 43, 44, 45, 46, 2], [(3, 5), (6, 9)]),
    stored([1, 40, 41, 42, 43, 44, 47, 48, 49, 2], [(3, 5), (8, 10)]),
    stored([1, 50, 51, 52, 2], [(2, 5)]),
    stored([1, 5, "e", 60, 61, 2], [(3, 5)]),
]


def prepared_adapter(case: str) -> tuple[PeftModel, Pixels]:
    """Return the small model for a case, and the source of its images."""
    ways = {"dora": {"use_dora": True}, "separators": {"modules_to_save": ["vision_proj", "separators"]}}
    model = small_adapter(**ways.get(case, {}))
    base = model.get_base_model()
    if case == "fused linears":
        lean_lora(model)
    if case in ("checkpointed", "offloaded"):
        memory_options.apply(base, MemoryOptions(2, 64, case == "offloaded"))
    return model, Pixels(base if case == "cached vectors" else None)


@pytest.mark.parametrize(
    "case", ["plain", "fused linears", "dora", "separators", "checkpointed", "offloaded", "cached vectors"]
)
def test_shared_prefixes_give_equal_gradients_in_every_adapter_case(case: str) -> None:
    model, source = prepared_adapter(case)
    batch = check(model, ROWS, source)
    assert batch["parents"].count(-1) == len(batch["parents"]) - 7  # three families, and two records alone


def test_a_loss_with_dynamic_rotary_scaling_is_that_of_separate_records() -> None:
    """Three questions about an image are longer than the 320 tokens above which angles depend on the length."""
    rows = [*ROWS[:3], ROWS[7], stored([1, 3, "a", 20, 21, *range(22, 32), 2], [(4, 6)])]
    lengths = [len(expand(sample_of(row))[0]) for row in rows]
    assert [length > 320 for length in lengths] == [True, True, False, False, True]
    model, source = small_adapter(), Pixels()
    records = SimpleNamespace(lengths=lengths, prefixes=prefixes_of(rows), record=rows.__getitem__)

    def separate() -> float:
        with torch.no_grad():
            batches = [make_batch([row], source) for row in rows]
            total = sum(len(batch["supervised"][1]) for batch in batches)
            losses = [model(**batch, use_cache=False, num_items_in_batch=total).loss for batch in batches]
            return float(torch.stack(losses).sum())

    unscaled = separate()
    stretched(model.get_base_model(), 320)
    found = mean_loss(model, records, source, 4096, torch.float32)
    assert found == pytest.approx(separate(), rel=LOSS)
    assert found != pytest.approx(unscaled, rel=1e-3)


def test_the_last_prefix_row_predicts_the_first_token_of_each_suffix() -> None:
    rows = ROWS[:2]
    batch = make_batch(rows, Pixels(), groups=[Group((0, 1), 1 + 1 + 313 + 4, 1)])
    assert batch["parents"] == (-1, 0, 0)
    last = 1 + 1 + 313 + 4 - 1
    asked, targets = (tensor.tolist() for tensor in batch["supervised"])
    assert asked == [last - 2, last - 1, last, last - 2, last - 1, last]
    assert targets == [12, 13, 14, 12, 13, 15]
    assert batch["position_ids"][0, last + 1 :].tolist() == [last + 1, last + 2] * 2


def test_records_without_a_common_prefix_are_refused() -> None:
    with pytest.raises(ValueError, match="share 4 tokens do not begin with the same ones"):
        make_batch([ROWS[5], ROWS[7]], Pixels(), groups=[Group((0, 1), 4, 0)])


def test_recomputed_layers_draw_the_same_dropout_for_shared_prefixes() -> None:
    """Recomputation draws the same dropout, and the loss is close to that without dropout."""
    batch = shared_batch(ROWS, Pixels())
    total = len(batch["supervised"][1])
    model = small_adapter(dropout=0.1)
    memory_options.apply(model.get_base_model(), MemoryOptions(0, 64, False))
    plain = learned(model, [batch], total)
    memory_options.apply(model.get_base_model(), MemoryOptions(2, 64, False))
    again = learned(model, [batch], total)
    assert all(torch.allclose(again[name], value, rtol=1e-4, atol=1e-6) for name, value in plain.items())
    without = learned(model.eval(), [batch], total)["loss"]
    assert 0 < float((plain["loss"] / without - 1).abs()) < 0.2


def test_a_pack_cut_between_questions_gives_the_same_gradient() -> None:
    """The pack has 344 tokens and memory for 328: three questions about an image of 313 tokens, and two texts."""
    model = small_adapter()
    tried = []

    def make(records: tuple[int, ...]) -> dict[str, Any]:
        return {**shared_batch([ROWS[record] for record in records], Pixels()), "records": records}

    def step(batch: dict[str, Any]) -> torch.Tensor:
        tried.append(batch["records"])
        if batch["input_ids"].numel() > 328:
            raise torch.OutOfMemoryError("injected")
        taken = {key: value for key, value in batch.items() if key != "records"}
        loss = model(**taken, use_cache=False, num_items_in_batch=total).loss
        loss.backward()
        return loss.detach()

    whole = make((0, 1, 2, 5, 6))
    total = len(whole["supervised"][1])
    loss = step_in_parts(step, whole, model, make=make, log=lambda sentence: None)
    found = {"loss": loss, **gradients(model)}
    assert tried == [(0, 1, 2, 5, 6), (0,), (1, 2, 5, 6), (1,), (2, 5, 6), (2,), (5, 6)]
    wanted = learned(model, [{key: value for key, value in whole.items() if key != "records"}], total)
    for name, value in wanted.items():
        assert float((found[name] - value).abs().max()) <= GRADIENT * float(value.abs().max()), name


def test_records_without_shared_prefixes_give_the_batch_without_sharing() -> None:
    """So a set with one question about each image costs what it costs with `share_prefixes: false`."""
    rows = [stored([image, 3, 4], [(1, 2)]) for image in "abc"]
    source = Pixels()
    alone = [Group((at,), 0, 0) for at in range(len(rows))]
    found, wanted = make_batch(rows, source, groups=alone), make_batch(rows, source)
    assert found.keys() == wanted.keys()
    assert "parents" not in found
    for name, value in wanted.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(found[name], value), name
    assert all(map(torch.equal, found["supervised"], wanted["supervised"]))
