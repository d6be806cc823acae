from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ixtune.data.pack import pack
from ixtune.errors import IxtuneError
from ixtune.layout import plan

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
    assert "training.pack_tokens to 90" in caught.value.hint
    assert caught.value.notes == ("record 1: 90 tokens", "record 3: 70 tokens")


def test_nothing_is_packed_into_nothing():
    assert pack([], 64) == []


def mix(count: int, kinds: tuple[int, ...] = (0, 25, 55), seed: int = 0) -> list[int]:
    """Tokens of equally many records of text, and of pages of several shapes at these hd_nums with a question each."""
    rng = random.Random(seed)
    lengths = []
    for _ in range(count):
        if hd_num := rng.choice(kinds):
            width, shape = rng.randint(1600, 3400), rng.choice((0.707, 0.75, 1.0, 1.294, 1.414, 1.6))
            lengths.append(plan(width, int(width * shape), hd_num).tokens + rng.randint(30, 300))
        else:
            lengths.append(rng.randint(40, 1200))
    return lengths


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("count", "full"), [(300, 0.96), (3000, 0.98), (30_000, 0.98)])
def test_packs_of_text_and_pages_are_full(count: int, full: float, seed: int):
    """Between the fewest packs that the tokens ask for and two hundredths more."""
    lengths = mix(count, seed=seed)
    packs = pack(lengths, 16384)
    fewest = -(-sum(lengths) // 16384)
    assert fewest <= len(packs) <= 1.02 * fewest + 1
    assert sum(lengths) / (len(packs) * 16384) > full


def test_where_no_two_records_fit_together_every_pack_has_one():
    """Best-fit is not to blame: without text to fill the gaps beside large pages, no packing could do better."""
    lengths = [8193 + seed % 50 for seed in range(40)]
    assert len(pack(lengths, 16384)) == 40


def test_a_million_records_are_packed_in_seconds():
    lengths = mix(50_000) * 20
    began = time.process_time()
    packs = pack(lengths, 16384)
    assert time.process_time() - began < 8  # measured: 1.9 s
    assert sum(lengths) / (len(packs) * 16384) > 0.98
