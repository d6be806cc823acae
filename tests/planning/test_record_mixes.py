"""The made-up records that recipes are planned on: the same each time, and as they are described."""

from __future__ import annotations

import pytest

from ixtune.errors import UsageError
from ixtune.layout import plan
from ixtune.planning.record_mixes import MIXES, RECORDS, records_of


@pytest.mark.parametrize("name", MIXES)
def test_a_mix_is_the_same_each_time_and_within_its_ranges(name: str):
    records = records_of(name)
    again = records_of(name)
    assert len(records) == RECORDS
    assert (records.lengths, records.supervised, records.pictures) == (again.lengths, again.supervised, again.pictures)
    kinds = MIXES[name].kinds
    for length, supervised, pictures in zip(records.lengths, records.supervised, records.pictures, strict=True):
        text = length - sum(picture.tokens for picture in pictures)
        assert any(
            kind.pictures[0] <= len(pictures) <= kind.pictures[1]
            and kind.text[0] <= text <= kind.text[1]
            and kind.answer[0] <= supervised <= kind.answer[1]
            for kind in kinds
        )
        assert supervised < text
        for picture in pictures:
            made = plan(picture.width, picture.height, picture.hd_num)
            assert (picture.rows, picture.cols, picture.tokens) == (made.rows, made.cols, made.tokens)


def test_half_of_the_text_mix_has_no_picture_and_every_multi_image_record_has_several():
    assert sum(not pictures for pictures in records_of("text-mix").pictures) == RECORDS // 2
    assert {len(pictures) for pictures in records_of("multi-image").pictures} == {2, 3, 4, 5}


def test_an_unknown_mix_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="no such mix") as caught:
        records_of("film")
    assert "documents" in caught.value.mend
