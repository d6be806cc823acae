"""Test finding near-duplicate images by their perceptual hashes."""

from __future__ import annotations

import sys
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from records import draw_page

from ixtune.data.images.near_images import MOST_BITS, NearImages, near_hash, require_package
from ixtune.errors import UsageError


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


@pytest.mark.parametrize(
    "change",
    [
        lambda image: as_jpeg(image, 20),
        lambda image: image.resize((250, 350)),
        lambda image: image.resize((900, 1260)),
        lambda image: image.convert("L"),
        lambda image: as_jpeg(image.resize((400, 560)), 60),
    ],
)
def test_resized_or_recompressed_copies_are_near_and_other_pages_not(change):
    known = NearImages()
    for seed in range(6):
        known.add(near_hash(draw_page(seed)))
    for seed in range(6):
        assert known.near(near_hash(change(draw_page(seed)))) == [near_hash(draw_page(seed))]
    assert known.near(near_hash(draw_page(99))) == []


@given(
    seen=st.lists(st.integers(0, 2**256 - 1), max_size=5),
    flips=st.lists(st.integers(0, 255), max_size=12, unique=True),
    value=st.integers(0, 2**256 - 1),
)
def test_exactly_the_hashes_within_the_distance_are_found(seen: list[int], flips: list[int], value: int):
    near = value
    for bit in flips:
        near ^= 1 << bit
    known = NearImages()
    for one in [*seen, near]:
        known.add(one)
    expected = {one for one in [*seen, near] if (one ^ value).bit_count() <= MOST_BITS}
    assert set(known.near(value)) == expected
    assert (near in expected) == (len(flips) <= MOST_BITS)


def test_the_near_duplicate_option_names_the_package_it_needs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(UsageError) as caught:
        require_package()
    assert "ixtune[near-duplicates]" in caught.value.hint
