"""Test the synthetic records that recipes are planned on: deterministic, and as described."""

from __future__ import annotations

import pytest

from ixtune.errors import UsageError
from ixtune.layout import plan
from ixtune.planning.record_mixes import MIXES, RECORDS, records_of


@pytest.mark.parametrize("name", MIXES)
def test_a_mix_is_deterministic_and_within_its_ranges(name: str):
    records = records_of(name)
    again = records_of(name)
    assert len(records) == RECORDS
    assert (records.lengths, records.supervised, records.images) == (again.lengths, again.supervised, again.images)
    kinds = MIXES[name].kinds
    for length, supervised, images in zip(records.lengths, records.supervised, records.images, strict=True):
        text = length - sum(image.tokens for image in images)
        assert any(
            kind.images[0] <= len(images) <= kind.images[1]
            and kind.text[0] <= text <= kind.text[1]
            and kind.answer[0] <= supervised <= kind.answer[1]
            for kind in kinds
        )
        assert supervised < text
        for image in images:
            made = plan(image.width, image.height, image.hd_num)
            assert (image.rows, image.cols, image.tokens) == (made.rows, made.cols, made.tokens)


def test_text_mix_and_multi_image_have_their_image_counts():
    assert sum(not images for images in records_of("text-mix").images) == RECORDS // 2
    assert {len(images) for images in records_of("multi-image").images} == {2, 3, 4, 5}


def test_an_unknown_mix_is_refused_with_the_list_of_mixes():
    with pytest.raises(UsageError, match="no such mix") as caught:
        records_of("film")
    assert "documents" in caught.value.hint
