from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from records import write_image

from ixtune.data.images import image_file
from ixtune.data.images.header import read_header
from ixtune.data.images.image_file import ImageError
from ixtune.data.images.pixels import NONE, Corrections, crops, open_image, place, place_and_cut
from ixtune.data.rejects import Reason
from ixtune.errors import UsageError
from ixtune.layout import LayoutError, plan


def reason_of(path: Path) -> Reason:
    with pytest.raises(ImageError) as caught:
        open_image(path)
    assert str(path) in str(caught.value)
    return caught.value.reason


def content(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def test_an_image_opens_equally_from_bytes_and_file(tmp_path: Path):
    path = write_image(tmp_path / "a.png", 60, 40)
    assert np.array_equal(open_image(path.read_bytes()), open_image(path))
    with pytest.raises(ImageError, match=r"row 3"):
        open_image(b"no image", name="row 3")
    with pytest.raises(ImageError, match=r"none\.png"):
        open_image(tmp_path / "none.png")


def test_too_many_pixels_are_refused_from_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_image(tmp_path / "a.png", 60, 40)
    monkeypatch.setattr(image_file, "MAX_PIXELS", 60 * 40)
    assert read_header(path, NONE, name="a.png").width == 60
    monkeypatch.setattr(image_file, "MAX_PIXELS", 60 * 40 - 1)
    assert reason_of(path) == Reason.PICTURE_TOO_LARGE


def test_the_pixel_limit_is_pillows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert image_file.MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS
    path = write_image(tmp_path / "a.png", 60, 40)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert reason_of(path) == Reason.PICTURE_TOO_LARGE


def test_a_large_image_below_the_limit_opens_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_image(tmp_path / "a.png", 60, 40)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(path).size == (60, 40)


def test_alpha_is_dropped_and_orientation_ignored_unless_corrected():
    hidden = content(Image.new("RGBA", (4, 2), (10, 20, 30, 0)))
    assert open_image(hidden).getpixel((0, 0)) == (10, 20, 30)
    assert open_image(hidden, Corrections(alpha=True)).getpixel((0, 0)) == (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees"
    turned = content(Image.new("RGB", (8, 4)), "JPEG", exif=exif)
    assert open_image(turned).size == (8, 4)
    assert open_image(turned, Corrections(exif=True)).size == (4, 8)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparency_over_white_matches_pillows_composition(mode: str):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 4), dtype=np.uint8))
    given = content(noise.convert(mode), "TIFF" if mode == "PA" else "PNG")
    seen = Image.open(BytesIO(given)).convert("RGBA")
    wanted = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    assert seen.getextrema()[3][0] < 255
    opened = np.asarray(open_image(given, Corrections(alpha=True)), dtype=int)
    assert np.abs(opened - np.asarray(wanted, dtype=int)).max() <= 1  # the two round differently


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_16_bit_pixels_are_scaled_to_8_bits_over_the_full_range(form: str):
    given = content(Image.fromarray(np.array([[0, 128, 129, 257, 32896, 65535]], dtype=np.uint16)), form)
    assert np.asarray(open_image(given))[0, 3:, 0].tolist() == [255, 255, 255]  # as the reference: cut off
    scaled = np.asarray(open_image(given, Corrections(depth=True)))
    assert scaled[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]
    assert (scaled == scaled[..., :1]).all()


def test_pixels_without_a_known_range_are_scaled_from_their_extremes():
    depth = Corrections(depth=True)
    whole = content(Image.fromarray(np.array([[-100, 0, 100]], dtype=np.int32)), "TIFF")
    assert np.asarray(open_image(whole, depth))[0, :, 0].tolist() == [0, 128, 255]
    odd = np.array([[0.0, 0.25, 1.0, np.nan, np.inf, -np.inf]], dtype=np.float32)
    assert np.asarray(open_image(content(Image.fromarray(odd), "TIFF"), depth))[0, :, 0].tolist() == [
        0, 64, 255, 0, 255, 0,
    ]  # fmt: skip
    for constant in (7.0, np.nan):
        even = content(Image.fromarray(np.full((2, 2), constant, dtype=np.float32)), "TIFF")
        assert not np.asarray(open_image(even, depth)).any()


def test_the_first_of_several_frames_is_opened():
    first, second = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    for form in ("GIF", "PNG", "TIFF"):
        animated = content(first, form, save_all=True, append_images=[second])
        assert open_image(animated, Corrections(first_frame=True)).getpixel((0, 0)) == (255, 0, 0)


def test_corrections_have_the_names_of_the_command_line_values():
    assert Corrections().names() == ()
    both = Corrections.of(["first-frame", "exif"])
    assert both == Corrections(exif=True, first_frame=True)
    assert both.names() == ("exif", "first-frame")
    assert Corrections.of(Corrections(True, True, True, True).names()) == Corrections(True, True, True, True)
    with pytest.raises(UsageError, match="'exfi', 'rgb'") as caught:
        Corrections.of(["exfi", "alpha", "rgb"])
    assert "exif, alpha, depth, first-frame" in caught.value.hint


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 6), st.booleans())
def test_a_placed_image_has_the_planned_size_and_white_padding(width: int, height: int, hd_num: int, upscale: bool):
    try:
        layout = plan(width, height, hd_num, upscale=upscale)
    except LayoutError:
        return
    placed = place(Image.new("RGB", (width, height), (1, 2, 3)), layout)
    assert placed.shape == (layout.final_height, layout.final_width, 3)
    inner = placed[
        layout.pad_top : layout.final_height - layout.pad_bottom,
        layout.pad_left : layout.final_width - layout.pad_right,
    ]
    assert inner.shape == (layout.resized_height, layout.resized_width, 3)
    assert (inner == (1, 2, 3)).all()
    assert (placed == 255).all(axis=2).sum() == placed[..., 0].size - inner[..., 0].size


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 6), st.booleans())
def test_place_and_cut_gives_the_same_crops_as_two_steps(width: int, height: int, hd_num: int, upscale: bool):
    try:
        layout = plan(width, height, hd_num, upscale=upscale)
    except LayoutError:
        return
    image = Image.effect_noise((width, height), 90).convert("RGB")
    assert np.array_equal(place_and_cut(image, layout), crops(place(image, layout)))


def test_an_image_that_keeps_its_size_keeps_its_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (500, 300, 3), dtype=np.uint8)
    layout = plan(300, 500, 4, upscale=False)
    placed = place(Image.fromarray(pixels), layout)
    assert placed.shape == (672, 336, 3)
    assert np.array_equal(placed[86:586, 18:318], pixels)


def test_reassembled_crops_equal_the_image():
    placed = np.random.default_rng(0).integers(0, 256, (2 * 336, 3 * 336, 3), dtype=np.uint8)
    rows = [np.concatenate(list(row), axis=2) for row in crops(placed).reshape(2, 3, 3, 336, 336)]
    assert np.array_equal(np.concatenate(rows, axis=1).transpose(1, 2, 0), placed)


def test_a_layout_for_another_image_size_is_refused():
    for way in (place, place_and_cut):
        with pytest.raises(ValueError, match="60 x 40"):
            way(Image.new("RGB", (60, 41)), plan(60, 40, 4))
        with pytest.raises(ValueError, match="RGB"):
            way(Image.new("L", (60, 40)), plan(60, 40, 4))


@pytest.mark.parametrize("shape", [(336, 335, 3), (336, 336, 4), (336, 336)])
def test_an_array_that_is_not_a_placed_image_is_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="336"):
        crops(np.zeros(shape, dtype=np.uint8))
