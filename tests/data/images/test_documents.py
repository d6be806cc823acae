"""Test pages of PDF and TIFF files: selection, rendered size, and refusals."""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pdf_files import pdf
from PIL import Image

from ixtune.data.images import documents
from ixtune.data.images.documents import Pages, frame, page_numbers, page_shape, page_size, png_of, render, split_pages
from ixtune.data.images.image_file import ImageError
from ixtune.data.rejects import Reason
from ixtune.layout import plan

A4, WIDE = (595, 842), (960, 540)


def tiff(*modes: str) -> bytes:
    pages = [Image.new("L", (40 + at, 30), 10 * at).convert(mode) for at, mode in enumerate(modes, start=1)]
    file = BytesIO()
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    return file.getvalue()


@pytest.mark.parametrize(
    ("given", "path", "pages"),
    [
        ("a.pdf", "a.pdf", None),
        ("a.pdf#page=3", "a.pdf", Pages(3, 3)),
        ("a b/c.pdf#PAGE=2-5", "a b/c.pdf", Pages(2, 5)),
        ("a#page=1.pdf", "a#page=1.pdf", None),
        ("#page=1", "#page=1", None),
        ("a.pdf#page=x", "a.pdf#page=x", None),
        ("a.pdf#page=2#page=3", "a.pdf#page=2", Pages(3, 3)),
    ],
)
def test_a_path_is_split_into_file_and_pages(given: str, path: str, pages: Pages | None):
    assert split_pages(given) == (path, pages)


@pytest.mark.parametrize("document", [pdf(A4, WIDE, A4), tiff("L", "1", "RGB")], ids=["pdf", "tiff"])
def test_page_ranges_start_at_one_and_include_both_ends(document: bytes):
    assert list(page_numbers(document, None, "d")) == [1, 2, 3]
    assert list(page_numbers(document, Pages(2, 2), "d")) == [2]
    assert list(page_numbers(document, Pages(2, 3), "d")) == [2, 3]
    for pages in (Pages(0, 0), Pages(4, 4), Pages(3, 4), Pages(3, 2)):
        with pytest.raises(ImageError, match="3 pages") as caught:
            page_numbers(document, pages, "d")
        assert caught.value.reason is Reason.PAGE_OUT_OF_RANGE
        assert "#page=3" in caught.value.hint


@given(st.floats(10, 15_000), st.floats(0.1, 10), st.sampled_from([1, 4, 9, 16, 25, 55, 256]), st.booleans())
def test_a_page_is_rendered_at_exactly_the_size_of_its_layout(wide: float, ratio: float, hd_num: int, upscale: bool):
    size = page_size((wide, wide * ratio), "page", hd_num)
    layout = plan(*size, hd_num, upscale=upscale)
    assert (layout.resized_width, layout.resized_height) == size
    assert layout.crops <= hd_num
    # it has the crops of an image of this shape that is much larger
    large = plan(round(1e5 * min(1, 1 / ratio)), round(1e5 * min(1, ratio)), hd_num)
    assert max(layout.rows, layout.cols) >= max(large.rows, large.cols)


def test_dpi_overrides_the_layout_size():
    assert page_size(A4, "page", 25, dpi=72) == A4
    assert page_size(A4, "page", 25, dpi=144) == (1190, 1684)
    with pytest.raises(ImageError) as caught:
        page_size((14_400, 14_400), "page", 25, dpi=300)
    assert caught.value.reason is Reason.PICTURE_TOO_LARGE
    assert "--dpi" in caught.value.hint


def test_pages_render_in_their_own_shape_with_the_same_bytes_each_time(tmp_path: Path):
    (tmp_path / "a.pdf").write_bytes(pdf(A4, WIDE))
    for source in (tmp_path / "a.pdf", pdf(A4, WIDE)):
        assert [page_shape(source, number, "d") for number in (1, 2)] == [A4, WIDE]
        image = render(source, 2, (960, 540), "d")
        assert (image.mode, image.size) == ("RGB", (960, 540))
        pixels = np.asarray(image)
        dark = np.argwhere(pixels.sum(axis=2) < 200)
        # the square of the second page: 20 points wide, at the lower left
        assert (dark.min(axis=0).tolist(), dark.max(axis=0).tolist()) == ([520, 0], [539, 19])
        assert png_of(image) == png_of(render(source, 2, (960, 540), "d"))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK"])
def test_a_tiff_page_keeps_its_pixels(mode: str):
    page = frame(tiff("L", mode, "L"), 2, "d")
    assert page.size == (42, 30)
    expected = Image.new("L", (42, 30), 20).convert(mode).convert("RGB")
    assert np.array_equal(np.asarray(Image.open(BytesIO(png_of(page))).convert("RGB")), np.asarray(expected))


@pytest.mark.parametrize(
    ("document", "reason", "hint"),
    [
        (pdf(A4, encrypted=True), Reason.DOCUMENT_ENCRYPTED, "qpdf --decrypt"),
        (b"%PDF-1.7\nnothing of the kind", Reason.PICTURE_BROKEN, "copy the file again"),
        (pdf(), Reason.PICTURE_BROKEN, "copy the file again"),
        (tiff("L", "L")[:60], Reason.PICTURE_BROKEN, "copy the file again"),
        (png_of(Image.new("L", (9, 9))), Reason.PAGE_OUT_OF_RANGE, "#page="),
        (b"text", Reason.PICTURE_UNREADABLE, "PNG"),
    ],
    ids=["encrypted", "broken", "empty", "cut", "png", "text"],
)
def test_a_document_without_readable_pages_is_refused_with_a_hint(document: bytes, reason: Reason, hint: str):
    with pytest.raises(ImageError) as caught:
        page_numbers(document, None, "d.pdf")
    assert caught.value.reason is reason, caught.value
    assert hint in caught.value.hint


def test_too_many_pages_are_refused_before_any_is_rendered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(documents, "MAX_PAGES", 2)
    assert list(page_numbers(pdf(A4, A4, A4), Pages(2, 3), "d")) == [2, 3]
    with pytest.raises(ImageError) as caught:
        page_numbers(pdf(A4, A4, A4), None, "d")
    assert caught.value.reason is Reason.TOO_MANY_PAGES


def test_without_the_package_a_pdf_is_refused_and_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    with pytest.raises(ImageError) as caught:
        page_numbers(pdf(A4), None, "d")
    assert caught.value.reason is Reason.NEEDS_EXTRA
    assert "ixtune[pdf]" in caught.value.hint
