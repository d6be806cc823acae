"""Test the packs of each step, resumed anywhere and distributed over several processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from engine import make_trainer, mixed_set
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from ixtune.data.prepared.training_set import TrainingSet
from ixtune.training.batch import pack_dataset
from ixtune.training.step.sampler import EpochPermutation
from ixtune.training.trainer import AdapterTrainer

PACKS = [[0], [1], [2, 3], [4], [3]]
EPOCHS, ACCUMULATION = 3, 2
STEPS_PER_EPOCH = 3  # the last one has one micro-batch


class Watched(AdapterTrainer):
    """Record the packs, and train almost nothing."""

    seen: list[tuple[int, tuple[int, ...]]]

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any) -> torch.Tensor:
        """Record the step and its records; the gradient is zero."""
        self.seen.append((self.state.global_step, inputs["records"]))
        loss = sum(0.0 * parameter.sum() for parameter in model.parameters() if parameter.requires_grad)
        loss.backward()
        return torch.zeros(())


def watch(trainer: AdapterTrainer) -> Watched:
    trainer.__class__ = Watched
    trainer.seen = []
    return trainer


@pytest.fixture(scope="module")
def training_set(tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    return TrainingSet.load([mixed_set(tmp_path_factory.mktemp("set"))])


def make(folder: Path, training_set: TrainingSet) -> Watched:
    return watch(
        make_trainer(
            folder, training_set, PACKS,
            "training.max_steps=null", f"training.epochs={EPOCHS}", f"training.gradient_accumulation={ACCUMULATION}",
            "training.save_every=1", "training.keep_checkpoints=99", "adapter.targets=[wqkv]",
        )
    )  # fmt: skip


def test_a_run_resumed_at_any_step_sees_the_remaining_packs(training_set: TrainingSet, tmp_path: Path) -> None:
    straight = make(tmp_path, training_set)
    straight.train()
    wanted = straight.seen
    total = EPOCHS * STEPS_PER_EPOCH
    assert [step for step, _ in wanted] == [0, 0, 1, 1, 2, 3, 3, 4, 4, 5, 6, 6, 7, 7, 8]
    epochs = [[records for _, records in wanted[start : start + 5]] for start in (0, 5, 10)]
    assert all(sorted(epoch) == sorted(map(tuple, PACKS)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == EPOCHS
    again = make(tmp_path, training_set)
    for done in range(1, total):
        again.seen = []
        again.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{done}"))
        assert again.seen == [seen for seen in wanted if seen[0] >= done], f"resumed after step {done}"


def dealt(packs: int, processes: int, rank: int, seed: int, epoch: int) -> list[int]:
    """Return the packs of one process in an epoch as accelerate distributes them; -1 for an empty one."""
    dataset = pack_dataset([[index] for index in range(packs)], processes)
    sampler = EpochPermutation(packs, seed, len(dataset) - packs)
    sampler.set_epoch(epoch)
    shard = BatchSamplerShard(BatchSampler(sampler, 1, drop_last=False), processes, rank)
    order = [index for (index,) in shard]
    assert len(order) == len(shard)
    return [index if index < packs else -1 for index in order]


def windows(order: list[int], size: int) -> Iterator[set[int]]:
    for start in range(0, len(order), size):
        yield {index for index in order[start : start + size] if index >= 0}


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.integers(0, 3))
def test_each_step_of_n_processes_equals_one_with_n_times_accumulation(
    packs: int, processes: int, accumulation: int, epoch: int
) -> None:
    shares = [dealt(packs, processes, rank, 7, epoch) for rank in range(processes)]
    assert len({len(share) for share in shares}) == 1, "a process would wait for ever"
    seen = sorted(index for share in shares for index in share if index >= 0)
    assert seen == list(range(packs)), "a pack was dropped or doubled"
    alone = list(windows(dealt(packs, 1, 0, 7, epoch), processes * accumulation))
    together = [set.union(*parts) for parts in zip(*(windows(share, accumulation) for share in shares), strict=True)]
    assert together == alone
