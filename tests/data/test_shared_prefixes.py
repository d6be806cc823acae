"""Test which records share a prefix, and its length."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import entry, write_image, write_source

from ixtune.base import resolve
from ixtune.data import shared_prefixes
from ixtune.data.pack import pack
from ixtune.data.prepare import prepare
from ixtune.data.prepared.manifest import PrepareOptions
from ixtune.data.prepared.training_set import TrainingSet
from ixtune.data.shared_prefixes import Prefixes, beginning, group, saving
from ixtune.data.sources.source import Source

# Tokens 1 and 2, and images of 3 tokens with the keys a and b.
ELEMENTS = st.sampled_from([1, 1, 1, 2, "a", "a", "b"])
streams = st.lists(st.lists(ELEMENTS, max_size=6).map(lambda stream: [*stream, 9]), max_size=7, unique_by=tuple)


def find(records: Sequence[Sequence[Any]]) -> Prefixes:
    numbers: dict[Any, int] = {}
    made = []
    for record in records:
        text: list[int] = []
        images = []
        for element in record:
            if isinstance(element, str):
                images.append((len(text), element, 3))
            else:
                text.append(element)
        made.append(beginning(text, images, numbers))
    return group(made)


def common_of(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return the length of the common prefix; each record keeps its last token."""
    run = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one[:-1], other[:-1], strict=False))
    return sum(3 if isinstance(element, str) else 1 for element, _ in run)


@pytest.fixture(autouse=True, scope="module")
def _short_prefixes_count() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_prefixes, "MIN_SHARED_TOKENS", 2)
        yield


@given(streams)
def test_a_groups_prefix_is_common_to_its_members_and_maximal(records: list[list[Any]]) -> None:
    prefixes = find(records)
    for number, (tokens, images) in enumerate(zip(prefixes.tokens, prefixes.images, strict=True)):
        members = [record for record, of in zip(records, prefixes.group_of, strict=True) if of == number]
        assert len(members) > 1
        assert tokens == min(common_of(*pair) for pair in itertools.combinations(members, 2)) >= 2
        positions = [element for element in members[0] for _ in range(3 if isinstance(element, str) else 1)]
        assert 3 * images == sum(isinstance(element, str) for element in positions[:tokens])


@given(streams)
def test_groups_save_at_least_as_much_as_any_pair(records: list[list[Any]]) -> None:
    prefixes = find(records)
    members = [list(prefixes.group_of).count(number) for number in range(len(prefixes.tokens))]
    saved = sum(tokens * (count - 1) for tokens, count in zip(prefixes.tokens, members, strict=True))
    for pair in itertools.combinations(records, 2):
        common = common_of(*pair)
        assert saved >= common * (common >= 2)


def test_records_with_one_image_share_it_despite_other_common_text() -> None:
    system = [1, 1]
    records = [[*system, "a", 2, 9], [*system, "b", 2, 9], [*system, "a", 1, 9], [*system, 2, 9], [*system, "b", 1, 9]]
    prefixes = find(records)
    first, second = prefixes.group_of[0], prefixes.group_of[1]
    assert list(prefixes.group_of) == [first, second, first, -1, second]
    assert list(prefixes.tokens) == [5, 5]
    assert list(prefixes.images) == [1, 1]


def test_copies_of_a_record_get_separate_groups() -> None:
    prefixes = find([[1, 1, 1, 9], [1, 1, 2, 9]] * 2)
    assert prefixes.group_of[0] == prefixes.group_of[1] != prefixes.group_of[2] == prefixes.group_of[3]


def test_prepared_sets_share_prefixes_of_equal_images_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images and layouts must be equal, names may differ; the header of a turn is too short to share."""
    monkeypatch.setattr(shared_prefixes, "MIN_SHARED_TOKENS", 64)
    write_image(tmp_path / "source" / "a.png")
    write_image(tmp_path / "source" / "b.png", 40, 60)
    shutil.copy(tmp_path / "source" / "a.png", tmp_path / "source" / "c.png")
    shown = [("one", "a"), ("two", "b"), ("three", "c"), ("four", "a")]
    entries = [entry(name, f"<ImageHere>{name}?", "42", image=[f"{image}.png"]) for name, image in shown]
    entries[3]["hd_num"] = 4
    prepare(
        [Source(path=str(write_source(tmp_path / "source", entries)))],
        tmp_path / "prepared", base=resolve("nano"), options=PrepareOptions(hd_num=1),
    )  # fmt: skip
    whole = TrainingSet.load([tmp_path / "prepared"], share_prefixes=True)
    assert whole.prefixes is not None
    assert [of >= 0 for of in whole.prefixes.group_of] == [True, False, True, False]
    (tokens,) = whole.prefixes.tokens
    assert tokens == 1 + 3 + 313  # BOS, the header of the user's turn, the image
    twice = TrainingSet.load([tmp_path / "prepared"], [2.0], share_prefixes=True)
    assert twice.prefixes is not None
    assert len(twice.prefixes.tokens) == 2
    assert TrainingSet.load([tmp_path / "prepared"]).prefixes is None
    longest = max(whole.lengths)
    guarded = TrainingSet.load([tmp_path / "prepared"], share_prefixes=True, alone_above=longest - 1)
    assert guarded.prefixes is not None
    assert set(guarded.prefixes.alone) == {at for at, length in enumerate(whole.lengths) if length == longest}
    for pack_tokens in (longest, 10 * longest):
        packs = pack(guarded.lengths, pack_tokens, guarded.prefixes)
        assert all((at,) in packs for at in guarded.prefixes.alone), "dynamic rotary scaling would change the others"
    assert len(pack(whole.lengths, 10 * longest, whole.prefixes)) == 1
    unshared = TrainingSet.load([tmp_path / "prepared"], alone_above=longest - 1).prefixes
    assert unshared is not None
    assert (set(unshared.group_of), unshared.alone) == ({-1}, guarded.prefixes.alone)
    saved = saving(whole.sets[0])
    assert saved is not None
    assert saved.record_tokens - saved.computed_tokens == tokens
    assert saved.describe().startswith("2 records on 1 images: training computes ")
