"""Batches that are made ahead are those that are made in turn, and no more of them than are expected."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import make_trainer, mixed_set

from ixtune.data.training_set import TrainingSet
from ixtune.errors import IxtuneError
from ixtune.training.ahead import PACKS, Ahead, announcer
from ixtune.training.batch import PackCollator, PictureSource, pack_dataset
from ixtune.training.trainer import EpochPermutation

WAIT_S = 30


class Maker:
    """Makes a batch when it is let; remembers what it made, and in which threads."""

    def __init__(self) -> None:
        self.let = threading.Event()
        self.made: list[tuple[tuple[int, ...], str]] = []

    def __call__(self, pack: tuple[int, ...]) -> dict[str, Any]:
        assert self.let.wait(WAIT_S)
        self.made.append((pack, threading.current_thread().name))
        if pack == (13,):
            raise IxtuneError("the picture has gone", where="13.png", mend="prepare the data again")
        return {"records": pack}


def test_what_is_expected_is_begun_in_threads_and_taken_once() -> None:
    maker = Maker()
    ahead = Ahead(maker)
    ahead.expect([(1,), (2, 3)])
    maker.let.set()
    assert ahead.take((2, 3)) == {"records": (2, 3)}
    assert ahead.take((1,)) == {"records": (1,)}
    assert all(name.startswith("pictures") for _, name in maker.made)
    assert ahead.take((1,)) == {"records": (1,)}  # begun for one taking only
    assert maker.made[-1] == ((1,), threading.current_thread().name)


def test_what_is_no_longer_expected_is_not_made() -> None:
    maker = Maker()
    ahead = Ahead(maker, threads=1)
    for start in range(100):  # as a resumed run runs past its first packs
        ahead.expect([(start + 20,), (start + 21,)])
    maker.let.set()
    assert ahead.take((119,)) == {"records": (119,)}
    assert ahead.take((120,)) == {"records": (120,)}
    assert [pack for pack, _ in maker.made] == [(20,), (119,), (120,)]  # the first one was under way


def test_an_error_comes_when_its_pack_is_taken_and_whole() -> None:
    maker = Maker()
    maker.let.set()
    ahead = Ahead(maker)
    ahead.expect([(13,), (14,)])
    assert ahead.take((14,)) == {"records": (14,)}
    with pytest.raises(IxtuneError, match="the picture has gone") as caught:
        ahead.take((13,))
    assert (caught.value.where, caught.value.mend) == ("13.png", "prepare the data again")


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_each_process_begins_with_its_own_next_packs(
    processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected: list[list[tuple[int, ...]]] = []
    monkeypatch.setattr(Ahead, "expect", lambda self, packs: expected.append(list(packs)))
    packs = pack_dataset([[number] for number in range(10)], processes)
    fillers = len(packs) - 10
    order = list(EpochPermutation(10, 0, fillers))
    for rank in range(processes):
        expected.clear()
        collator = PackCollator.__new__(PackCollator)
        told = announcer(collator, packs, rank, processes)
        assert list(EpochPermutation(10, 0, fillers, told)) == order
        mine = [order[place] for place in range(rank, len(order), processes)]
        for at, packs_expected in enumerate(expected):
            left = [index for place, index in enumerate(mine) if place * processes + rank >= at]
            assert packs_expected == [(index,) for index in left if index < 10][:PACKS]


def test_a_run_that_reads_ahead_is_bit_for_bit_one_that_does_not(tmp_path: Path) -> None:
    training_set = TrainingSet.load([mixed_set(tmp_path / "set")])
    found = []
    for name in ("in turn", "ahead"):
        packs = [[0], [1, 2], [3], [4]]
        trainer = make_trainer(tmp_path / name, training_set, packs, "training.max_steps=6", "training.save_every=99")
        if name == "ahead":
            told = announcer(trainer.collator, trainer.train_dataset, 0, 1)
            trainer._announced = lambda packs, told=told: told  # type: ignore[method-assign]
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        found.append((losses, {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}))
    assert found[0][0] == found[1][0]
    assert len(found[0][0]) >= 1
    assert all(torch.equal(tensor, found[1][1][name]) for name, tensor in found[0][1].items())


def test_batches_from_threads_equal_those_made_in_turn(tmp_path: Path) -> None:
    training_set = TrainingSet.load([mixed_set(tmp_path / "set")])
    collator = PackCollator(training_set, PictureSource(training_set.files))
    packs = [(0,), (1, 2), (3,), (4,)]
    wanted = [collator.make(pack) for pack in packs]
    ahead = Ahead(collator.make)
    ahead.expect(packs)
    for pack, batch in zip(packs, wanted, strict=True):
        found = ahead.take(pack)
        assert found.keys() == batch.keys()
        assert all(torch.equal(found[key], value) for key, value in batch.items() if isinstance(value, torch.Tensor))
