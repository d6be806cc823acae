"""Test that prefetched batches equal those made sequentially, and that their number is bounded."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from engine import make_trainer, mixed_set
from torch.utils.data import BatchSampler

from ixtune.data.prepared.training_set import TrainingSet
from ixtune.errors import IxtuneError
from ixtune.training.batch import ImageSource, PackCollator, pack_dataset
from ixtune.training.prefetch import Prefetcher
from ixtune.training.step.sampler import EpochPermutation
from ixtune.training.trainer import AdapterTrainer

WAIT_S = 300


class Maker:
    """Make a batch when allowed; record the batches made and their threads."""

    def __init__(self) -> None:
        self.let = threading.Event()
        self.made: list[tuple[tuple[int, ...], str]] = []

    def __call__(self, pack: tuple[int, ...]) -> dict[str, Any]:
        assert self.let.wait(WAIT_S)
        self.made.append((pack, threading.current_thread().name))
        if pack == (13,):
            raise IxtuneError("the image has gone", where="13.png", hint="prepare the data again")
        return {"records": pack}


def test_following_packs_are_made_in_threads_and_taken_once() -> None:
    maker = Maker()
    maker.let.set()
    prefetcher = Prefetcher(maker, 2)
    order = [(1,), (2, 3), (4,), (5,)]
    prefetcher.follow(order)
    assert maker.made == []  # nothing before one is taken
    assert [prefetcher.take(pack) for pack in order] == [{"records": pack} for pack in order]
    here = threading.current_thread().name
    made = dict(maker.made)
    assert made.pop((1,)) == here
    assert made.keys() == {(2, 3), (4,), (5,)}
    assert all(name.startswith("pictures") for name in made.values())
    assert prefetcher.take((4,)) == {"records": (4,)}  # begun for one taking only
    assert maker.made[-1] == ((4,), here)


def test_packs_skipped_by_a_resumed_run_are_not_made() -> None:
    maker = Maker()
    maker.let.set()
    prefetcher = Prefetcher(maker, 2)
    prefetcher.follow([(number,) for number in range(100)])
    assert prefetcher.take((97,)) == {"records": (97,)}
    assert prefetcher.take((98,)) == {"records": (98,)}
    assert prefetcher.take((99,)) == {"records": (99,)}
    assert {pack for pack, _ in maker.made} == {(97,), (98,), (99,)}


def test_at_most_the_requested_number_of_packs_is_prefetched() -> None:
    maker = Maker()
    prefetcher = Prefetcher(maker, 2)
    prefetcher.follow([(number,) for number in range(10)])
    taking = threading.Thread(target=prefetcher.take, args=((0,),))
    taking.start()
    maker.let.set()
    taking.join(WAIT_S)
    prefetcher.close()
    for thread in [one for one in threading.enumerate() if one.name.startswith("pictures")]:
        thread.join(WAIT_S)
    assert {pack for pack, _ in maker.made} <= {(0,), (1,), (2,)}
    assert prefetcher.take((7,)) == {"records": (7,)}


def test_an_error_is_raised_complete_when_its_pack_is_taken() -> None:
    maker = Maker()
    maker.let.set()
    prefetcher = Prefetcher(maker, 3)
    prefetcher.follow([(12,), (13,), (14,)])
    assert prefetcher.take((12,)) == {"records": (12,)}
    with pytest.raises(IxtuneError, match="the image has gone") as caught:
        prefetcher.take((13,))
    assert (caught.value.where, caught.value.hint) == ("13.png", "prepare the data again")
    assert prefetcher.take((14,)) == {"records": (14,)}


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_each_process_makes_its_own_packs_once(processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Distribute batches like accelerate: draw a whole round before any process gets its own."""
    count = 10
    packs = pack_dataset([[number] for number in range(count)], processes)
    fillers = len(packs) - count
    for rank in range(processes):
        maker = Maker()
        maker.let.set()
        trainer = AdapterTrainer.__new__(AdapterTrainer)
        trainer.data_collator = PackCollator.__new__(PackCollator)
        trainer.data_collator.make = maker  # type: ignore[method-assign]
        trainer.args = SimpleNamespace(gradient_accumulation_steps=2, world_size=processes)  # type: ignore[assignment]
        monkeypatch.setenv("RANK", str(rank))
        sampler = EpochPermutation(count, 0, fillers, trainer.prefetch(packs))
        dealt = BatchSamplerShard(BatchSampler(sampler, 1, False), processes, rank)
        for (index,) in dealt:
            trainer.collator([packs[index]])
        order = list(EpochPermutation(count, 0, fillers))
        mine = [order[place] for place in range(rank, len(order), processes) if order[place] < count]
        assert sorted(pack for pack, _ in maker.made) == sorted((index,) for index in mine)
        assert sum(name.startswith("pictures") for _, name in maker.made) == len(mine) - 1


def test_prefetching_gives_a_bit_for_bit_equal_run(tmp_path: Path) -> None:
    training_set = TrainingSet.load([mixed_set(tmp_path / "set")])
    found = []
    for name in ("in turn", "ahead"):
        packs = [[0], [1, 2], [3], [4]]
        trainer = make_trainer(tmp_path / name, training_set, packs, "training.max_steps=6", "training.save_every=99")
        if name == "ahead":
            trainer._announced = trainer.prefetch  # type: ignore[method-assign]
        trainer.train()
        assert (trainer._prefetcher is not None) == (name == "ahead")
        assert trainer.collator.take == trainer.collator.make
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        found.append((losses, {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}))
    assert found[0][0] == found[1][0]
    assert len(found[0][0]) >= 1
    assert all(torch.equal(tensor, found[1][1][name]) for name, tensor in found[0][1].items())


def test_warning_filters_are_restored_after_images_open_in_threads(tmp_path: Path) -> None:
    training_set = TrainingSet.load([mixed_set(tmp_path / "set")])
    collator = PackCollator(training_set, ImageSource(training_set.files))
    collator.make((0,))  # adds what is ignored of Pillow's own
    before = list(warnings.filters)
    prefetcher = Prefetcher(collator.make, 4)
    order = [(1, 2), (3,), (4,), (0, 1), (2, 3)]
    prefetcher.follow(order)
    for pack in order:
        prefetcher.take(pack)
    assert set(map(str, warnings.filters)) == set(map(str, before))
    with pytest.warns(UserWarning, match="still heard"):
        warnings.warn("still heard", UserWarning, stacklevel=1)


def test_batches_from_threads_equal_those_made_sequentially(tmp_path: Path) -> None:
    training_set = TrainingSet.load([mixed_set(tmp_path / "set")])
    collator = PackCollator(training_set, ImageSource(training_set.files))
    packs = [(0,), (1, 2), (3,), (4,)]
    wanted = [collator.make(pack) for pack in packs]
    prefetcher = Prefetcher(collator.make, 3)
    prefetcher.follow(packs)
    for pack, batch in zip(packs, wanted, strict=True):
        found = prefetcher.take(pack)
        assert found.keys() == batch.keys()
        assert all(torch.equal(found[key], value) for key, value in batch.items() if isinstance(value, torch.Tensor))
