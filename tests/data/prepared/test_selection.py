from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ixtune.data.prepared.selection import Groups, draw
from ixtune.errors import UsageError


@given(count=st.integers(1, 60), total=st.integers(0, 200), seed=st.text(max_size=3))
def test_a_draw_takes_every_record_equally_often_within_one(count: int, total: int, seed: str):
    times = draw(count, total, seed)
    assert sum(times) == total
    assert set(times) <= {total // count, total // count + 1}
    assert times == draw(count, total, seed)


def test_a_draw_depends_on_the_seed_and_may_be_empty():
    assert draw(100, 50, "0") != draw(100, 50, "1")
    assert not draw(0, 5, "0")


def split(records: list[list[str]], fraction: float, seed: int = 0) -> bytearray:
    groups = Groups(seed)
    for number, keys in enumerate(records):
        groups.add(keys, str(number))
    return groups.validation(fraction)


@given(
    records=st.lists(st.lists(st.integers(0, 30).map(str), max_size=3), min_size=2, max_size=60),
    fraction=st.floats(0.05, 0.9),
    seed=st.integers(0, 5),
)
def test_no_image_is_on_both_sides_and_the_fraction_is_not_exceeded(
    records: list[list[str]], fraction: float, seed: int
):
    try:
        sides = split(records, fraction, seed)
    except UsageError:
        return
    shown = [
        {key for keys, side in zip(records, sides, strict=True) if side == wanted for key in keys} for wanted in (0, 1)
    ]
    assert not shown[0] & shown[1]
    assert 0 < sum(sides) <= round(fraction * len(records))
    assert sides == split(records, fraction, seed)


def test_records_linked_through_others_stay_on_one_side():
    chain = [["a"], ["b"], ["a", "b"], *([f"x{n}"] for n in range(97))]
    for seed in range(40):
        sides = split(chain, 0.3, seed)
        assert sides[0] == sides[1] == sides[2]


def test_records_without_images_are_split_individually():
    assert sum(split([[] for _ in range(200)], 0.1)) == 20


def test_the_split_depends_on_the_seed():
    records = [[str(n)] for n in range(50)]
    assert len({bytes(split(records, 0.2, seed)) for seed in range(10)}) > 5


def test_records_that_cannot_be_split_are_refused():
    with pytest.raises(UsageError) as caught:
        split([["same"]] * 10, 0.2)
    assert "1 groups" in str(caught.value)
    assert "--val-fraction" in caught.value.hint


def test_each_record_has_the_same_chance():
    hits = Counter[int]()
    for seed in range(300):
        hits.update(at for at, side in enumerate(split([[str(n)] for n in range(20)], 0.25, seed)) if side)
    assert min(hits[at] for at in range(20)) > 45  # 75 expected, standard deviation 7.5
    assert max(hits.values()) < 105
