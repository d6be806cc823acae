from __future__ import annotations

import itertools
import random
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ixtune.data.pack import pack
from ixtune.data.shared_prefixes import Prefixes, beginning, group
from ixtune.errors import IxtuneError
from ixtune.layout import plan

problems = st.integers(1, 60).flatmap(lambda room: st.tuples(st.lists(st.integers(1, room)), st.just(room)))


def packed_plainly(lengths: list[int], pack_tokens: int) -> list[tuple[int, ...]]:
    """Implement best-fit decreasing literally: look at every open pack, take the fullest one with room."""
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
def test_every_record_is_in_exactly_one_pack_and_no_pack_is_too_long(problem: tuple[list[int], int]):
    lengths, room = problem
    packs = pack(lengths, room)
    assert sorted(index for chosen in packs for index in chosen) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in chosen) <= room for chosen in packs)


@given(problems)
def test_packs_match_a_plain_best_fit_decreasing(problem: tuple[list[int], int]):
    lengths, room = problem
    assert pack(lengths, room) == packed_plainly(lengths, room)


@given(problems)
def test_no_two_packs_could_be_merged(problem: tuple[list[int], int]):
    lengths, room = problem
    sums = sorted(sum(lengths[index] for index in chosen) for chosen in pack(lengths, room))
    assert len(sums) < 2 or sums[0] + sums[1] > room


def test_packs_depend_only_on_the_lengths():
    lengths = [random.Random(0).randint(1, 4000) for _ in range(500)]
    assert pack(iter(lengths), 8192) == pack(lengths, 8192)


def test_a_record_longer_than_a_pack_is_named():
    with pytest.raises(IxtuneError) as caught:
        pack([5, 90, 3, 70], 64)
    assert "record 1 has 90 tokens" in str(caught.value)
    assert "training.pack_tokens to 90" in caught.value.hint
    assert caught.value.notes == ("record 1: 90 tokens", "record 3: 70 tokens")


groups = st.integers(20, 60).flatmap(
    lambda room: st.tuples(
        st.lists(st.tuples(st.integers(1, room // 2), st.integers(-1, 3)), max_size=20),
        st.lists(st.integers(1, room // 2), min_size=4, max_size=4),
        st.just(room),
    )
)


@given(groups)
def test_each_pack_with_members_of_a_group_holds_its_prefix_once(problem: Any):
    """Members are neighbors, packs keep their size, and no two parts of a group would fit into one pack."""
    suffixes, tokens, room = problem
    group_of = [group for _, group in suffixes]
    lengths = [suffix + (tokens[group] if group >= 0 else 0) for suffix, group in suffixes]
    prefixes = Prefixes(group_of, tokens, [0] * 4)
    packs = pack(lengths, room, prefixes)
    assert sorted(index for chosen in packs for index in chosen) == list(range(len(lengths)))
    parts: dict[int, list[int]] = {}
    for chosen in packs:
        runs = [of for of, _ in itertools.groupby(chosen, key=group_of.__getitem__) if of >= 0]
        assert len(runs) == len(set(runs))
        saved = sum(one.tokens * (len(one.records) - 1) for one in prefixes.groups(chosen))
        assert sum(lengths[index] for index in chosen) - saved <= room
        for of in runs:
            parts.setdefault(of, []).append(sum(suffixes[index][0] for index in chosen if group_of[index] == of))
    for of, sizes in parts.items():
        smallest, next_one = ([*sorted(sizes), room])[:2]
        assert smallest + next_one + tokens[of] > room


@given(problems)
def test_records_without_shared_prefixes_are_packed_as_before(problem: tuple[list[int], int]):
    lengths, room = problem
    assert pack(lengths, room, Prefixes([-1] * len(lengths), [], [])) == pack(lengths, room)


def test_an_empty_list_gives_no_packs():
    assert pack([], 64) == []


def mix(count: int, kinds: tuple[int, ...] = (0, 25, 55), seed: int = 0) -> list[int]:
    """Return lengths of text records and as many page records, in several page shapes at these hd_nums."""
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
    """Accept at most two percent more packs than the lower bound from the total tokens."""
    lengths = mix(count, seed=seed)
    packs = pack(lengths, 16384)
    fewest = -(-sum(lengths) // 16384)
    assert fewest <= len(packs) <= 1.02 * fewest + 1
    assert sum(lengths) / (len(packs) * 16384) > full


def test_records_that_fit_only_alone_get_a_pack_each():
    """Without text records to fill the gaps left by large pages, no algorithm could do better."""
    lengths = [8193 + seed % 50 for seed in range(40)]
    assert len(pack(lengths, 16384)) == 40


def test_a_million_records_are_packed_in_seconds():
    lengths = mix(50_000) * 20
    began = time.process_time()
    packs = pack(lengths, 16384)
    assert time.process_time() - began < 8  # measured: 1.9 s
    assert sum(lengths) / (len(packs) * 16384) > 0.98


def test_a_million_records_on_shared_images_are_packed_in_seconds():
    chance, numbers = random.Random(0), {}
    beginnings = [
        beginning([1, 2, 3, *chance.choices(range(3, 90_000), k=20)], [(3, index * 7919 % 100_000 // 4, 3097)], numbers)
        for index in range(100_000)
    ]
    began = time.process_time()
    prefixes = group(beginnings * 10)
    packs = pack([3120] * len(prefixes.group_of), 8192, prefixes)
    assert time.process_time() - began < 25  # measured: 6.3 s for a million different ones
    assert len(packs) == 125_000
