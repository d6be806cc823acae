"""Test that running out of memory costs time but changes no gradient."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gpu import needs_gpu
from peft import PeftModel
from small_pack import RECORDS, gradients, small_adapter, small_pack, take_step

from ixtune.errors import IxtuneError
from ixtune.family import FOUR_KHD
from ixtune.training.step.memory_fallback import rehearse, split, step_in_parts

Batch = dict[str, Any]
ASKED = 3 * len(RECORDS)
ALL = (0, 1, 2, 3, 4)


def make(records: tuple[int, ...] = ALL) -> Batch:
    """Return a batch as from the collator."""
    return {**small_pack([RECORDS[record] for record in records]), "records": records}


def without_records(batch: Batch) -> Batch:
    return {key: value for key, value in batch.items() if key != "records"}


@pytest.fixture(scope="module")
def adapter() -> PeftModel:
    return small_adapter()


@pytest.fixture(scope="module")
def whole(adapter: PeftModel) -> dict[str, torch.Tensor]:
    loss = take_step(adapter, small_pack(), ASKED)
    return {"loss": loss, **gradients(adapter)}


class Short:
    """Simulate memory for packs of a limited size; larger ones fail before or in the backward pass."""

    def __init__(self, model: PeftModel, room: int, fails_after: int | None = None, error: type = None) -> None:
        self.model, self.room, self.fails_after = model, room, fails_after
        self.error = error or torch.OutOfMemoryError
        self.tried: list[int] = []

    def __call__(self, batch: Batch) -> torch.Tensor:
        tokens = batch["input_ids"].numel()
        self.tried.append(tokens)
        batch = without_records(batch)
        if tokens <= self.room:
            return take_step(self.model, batch, ASKED)
        if self.fails_after is None:
            raise self.error("injected")
        had: list[torch.nn.Parameter] = []

        def count(parameter: torch.nn.Parameter) -> None:
            had.append(parameter)
            if len(had) == self.fails_after:
                raise self.error("injected in the backward pass")

        handles = [p.register_post_accumulate_grad_hook(count) for p in self.model.parameters() if p.requires_grad]
        try:
            return take_step(self.model, batch, ASKED)
        finally:
            for handle in handles:
                handle.remove()


def _same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert float((found[name] - value).norm() / value.norm()) < 1e-6, name


@pytest.mark.parametrize("room", [1000, 776])
@pytest.mark.parametrize("fails_after", [None, 7, 24])
def test_a_pack_cut_into_parts_gives_the_gradient_of_the_whole(
    adapter: PeftModel, whole: dict[str, torch.Tensor], room: int, fails_after: int | None
) -> None:
    """20 of the 24 tensors belong to LoRA; a failure after all 24 cannot occur in a text-only pack."""
    step, logged = Short(adapter, room, fails_after), []
    loss = step_in_parts(step, make(), adapter, make=make, log=logged.append)
    _same({"loss": loss, **gradients(adapter)}, whole)
    assert len(step.tried) == 2 * len(logged) + 1 > 1
    assert "cut in two" in logged[0]
    assert "in 5 records" in logged[0]


def test_gradients_of_earlier_packs_in_the_step_are_kept(adapter: PeftModel, whole: dict[str, torch.Tensor]) -> None:
    take_step(adapter, small_pack(), ASKED)
    step_in_parts(Short(adapter, 1000, 7), make(), adapter, make=make, log=lambda text: None)
    twice = gradients(adapter)
    _same({name: gradient / 2 for name, gradient in twice.items()}, {n: w for n, w in whole.items() if n != "loss"})


def test_a_pack_that_fits_is_not_cut(adapter: PeftModel, whole: dict[str, torch.Tensor]) -> None:
    loss = step_in_parts(Short(adapter, 10**6), make(), adapter, make=make, log=pytest.fail)
    found = {"loss": loss, **gradients(adapter)}
    assert all(torch.equal(found[name], value) for name, value in whole.items())


def test_out_of_memory_errors_of_other_libraries_are_recognized(adapter: PeftModel) -> None:
    class Cublas(RuntimeError):
        def __init__(self, _: str) -> None:
            super().__init__("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)")

    logged: list[str] = []
    step_in_parts(Short(adapter, 1000, error=Cublas), make(), adapter, make=make, log=logged.append)
    assert logged
    with pytest.raises(RuntimeError, match="^injected$"):
        step_in_parts(Short(adapter, 1000, error=RuntimeError), make(), adapter, make=make, log=logged.append)
    gradients(adapter)


def test_a_record_that_does_not_fit_alone_is_named_with_length_and_hint(adapter: PeftModel) -> None:
    longest = 1 + 5 + FOUR_KHD.tokens(1, 2) + FOUR_KHD.tokens(1, 1)
    with pytest.raises(IxtuneError, match=f"a single record, {longest:,} tokens, does not fit") as caught:
        step_in_parts(
            Short(adapter, longest - 1),
            make(),
            adapter,
            make=make,
            log=lambda text: None,
            named=lambda part: f"record {part['records'][0]}",
        )
    gradients(adapter)
    assert caught.value.where == "record 3"
    assert "training.gradient_checkpointing=true" in caught.value.hint


def test_a_pack_is_cut_at_half_of_its_tokens() -> None:
    assert split({**small_pack([(9, [])] * 4), "records": (3, 1, 4, 15)}) == [(3, 1), (4, 15)]
    assert split(make()) == [(0, 1, 2), (3, 4)]
    assert split(make((3,))) == []


def test_a_pack_can_be_cut_between_records_that_share_a_prefix() -> None:
    batch = {"cu_seq_lens_q": torch.tensor([0, 100, 110, 120, 135]), "parents": (-1, 0, 0, -1), "records": (7, 8, 9)}
    assert split(batch) == [(7,), (8, 9)]


def _states() -> list[Any]:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # noqa: NPY002


@pytest.mark.parametrize("earlier", [False, True])
def test_a_rehearsal_leaves_gradients_and_random_state_unchanged(adapter: PeftModel, earlier: bool) -> None:
    if earlier:
        take_step(adapter, small_pack(RECORDS[:2]))
    kept = {name: p.grad for name, p in adapter.named_parameters()}
    copies = {name: None if gradient is None else gradient.clone() for name, gradient in kept.items()}
    weights = {name: p.detach().clone() for name, p in adapter.named_parameters()}
    states = _states()
    drawn: list[torch.Tensor] = []

    def step(batch: Batch) -> torch.Tensor:
        random.random(), np.random.rand()  # noqa: NPY002
        drawn.append(torch.rand(3))
        return take_step(adapter, batch)

    assert rehearse(adapter, small_pack(), step, reserve_bytes=1000) is None
    assert len(drawn) == 1
    assert _states() == states
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is kept[name]
        assert parameter.grad is None or torch.equal(parameter.grad, copies[name])
        assert torch.equal(parameter, weights[name])
    gradients(adapter)


def test_a_rehearsal_that_does_not_fit_raises_an_error_with_a_hint(adapter: PeftModel) -> None:
    states = _states()
    with pytest.raises(
        IxtuneError, match=r"largest pack of the run, 1,\d+ tokens in 5 records, does not fit"
    ) as caught:
        rehearse(adapter, make(), Short(adapter, 5, 7))
    assert "training.pack_tokens" in caught.value.hint
    assert _states() == states
    assert all(parameter.grad is None for parameter in adapter.parameters())


def test_other_errors_in_a_rehearsal_are_raised_unchanged(adapter: PeftModel) -> None:
    def step(batch: Batch) -> torch.Tensor:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        rehearse(adapter, small_pack(), step)


@needs_gpu
def test_a_gpu_reports_its_peak_memory(adapter: PeftModel) -> None:
    model: Callable[..., Any] = adapter.to("cuda")
    batch = {k: v.to("cuda") if isinstance(v, torch.Tensor) else v for k, v in small_pack().items()}
    batch["supervised"] = tuple(t.to("cuda") for t in batch["supervised"])
    try:
        peak = rehearse(adapter, batch, lambda part: take_step(model, part), reserve_bytes=2**30)
        assert peak is not None
        assert peak > 2**30
    finally:
        adapter.to("cpu")
