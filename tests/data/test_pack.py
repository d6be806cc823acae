from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ixtune.data.pack import pack
from ixtune.errors import IxtuneError

problems = st.integers(1, 60).flatmap(lambda room: st.tuples(st.lists(st.integers(1, room)), st.just(room)))


def packed_plainly(lengths: list[int], pack_tokens: int) -> list[tuple[int, ...]]:
    """Best-fit decreasing as it is told: look at every open pack, take the fullest with room."""
    packs: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        rooms = [pack_tokens - sum(lengths[i] for i in chosen) for chosen in packs]
        fitting = [room for room in rooms if room >= lengths[index]]
        if fitting:
            # of equally full packs the one that became so last, as a stack gives it
            packs.append(packs.pop(max(n for n, room in enumerate(rooms) if room == min(fitting))))
        else:
            packs.append([])
        packs[-1].append(index)
    return sorted(tuple(sorted(chosen)) for chosen in packs)


@given(problems)
def test_every_record_is_in_one_pack_and_no_pack_is_overfull(problem: tuple[list[int], int]):
    lengths, room = problem
    packs = pack(lengths, room)
    assert sorted(index for chosen in packs for index in chosen) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in chosen) <= room for chosen in packs)


@given(problems)
def test_packs_are_those_of_best_fit_decreasing(problem: tuple[list[int], int]):
    lengths, room = problem
    assert pack(lengths, room) == packed_plainly(lengths, room)


@given(problems)
def test_no_two_packs_could_be_one(problem: tuple[list[int], int]):
    lengths, room = problem
    sums = sorted(sum(lengths[index] for index in chosen) for chosen in pack(lengths, room))
    assert len(sums) < 2 or sums[0] + sums[1] > room


def test_packs_do_not_depend_on_anything_but_the_lengths():
    lengths = [random.Random(0).randint(1, 4000) for _ in range(500)]
    assert pack(iter(lengths), 8192) == pack(lengths, 8192)


def test_a_record_longer_than_a_pack_is_named():
    with pytest.raises(IxtuneError) as caught:
        pack([5, 90, 3, 70], 64)
    assert "record 1 has 90 tokens" in str(caught.value)
    assert "training.pack_tokens to 90" in caught.value.mend
    assert caught.value.notes == ("record 1: 90 tokens", "record 3: 70 tokens")


def test_nothing_is_packed_into_nothing():
    assert pack([], 64) == []


def test_many_records_are_packed_in_no_time():
    rng = random.Random(0)
    lengths = [rng.randint(300, 9000) for _ in range(100_000)]
    began = time.process_time()
    packs = pack(lengths, 16384)
    assert time.process_time() - began < 5
    assert sum(lengths) / (len(packs) * 16384) > 0.99
