from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from records import write_picture

from ixtune.data import pixels
from ixtune.data.pixels import PictureError, crops, open_picture, place, read_size
from ixtune.data.rejects import Reason
from ixtune.layout import plan


def reason_of(path: Path) -> Reason:
    with pytest.raises(PictureError) as caught:
        open_picture(path)
    assert str(path) in str(caught.value)
    assert caught.value.mend
    return caught.value.reason


def test_missing_files_folders_and_empty_files_have_reasons_of_their_own(tmp_path: Path):
    (tmp_path / "empty.png").touch()
    assert reason_of(tmp_path / "none.png") == Reason.PICTURE_MISSING
    assert reason_of(tmp_path) == Reason.PICTURE_IS_FOLDER
    assert reason_of(tmp_path / "empty.png") == Reason.PICTURE_EMPTY
    assert reason_of(tmp_path / "empty.png" / "below.png") == Reason.PICTURE_MISSING


def test_what_is_no_picture_is_unreadable(tmp_path: Path):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "drawing.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    assert reason_of(tmp_path / "text.png") == Reason.PICTURE_UNREADABLE
    assert reason_of(tmp_path / "drawing.eps") == Reason.PICTURE_UNREADABLE  # would run another program


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    assert reason_of(tmp_path / "pipe.png") == Reason.PICTURE_UNREADABLE


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff", "bmp"])
def test_a_file_cut_short_is_broken_though_its_header_can_be_read(tmp_path: Path, suffix: str):
    path = write_picture(tmp_path / f"a.{suffix}", 200, 150)
    whole = path.read_bytes()
    assert open_picture(path).size == (200, 150)
    path.write_bytes(whole[: len(whole) // 2])
    assert reason_of(path) in (Reason.PICTURE_BROKEN, Reason.PICTURE_UNREADABLE)


def test_a_png_with_a_damaged_block_is_broken(tmp_path: Path):
    path = write_picture(tmp_path / "a.png", 200, 150)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    path.write_bytes(damaged)
    assert read_size(path) == (200, 150)
    assert reason_of(path) == Reason.PICTURE_BROKEN


def test_too_many_pixels_are_refused_from_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_picture(tmp_path / "a.png", 60, 40)
    monkeypatch.setattr(pixels, "MAX_PIXELS", 60 * 40)
    assert read_size(path) == (60, 40)
    monkeypatch.setattr(pixels, "MAX_PIXELS", 60 * 40 - 1)
    assert reason_of(path) == Reason.PICTURE_TOO_LARGE


def test_the_limit_is_pillows_own_and_its_error_is_put_into_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert pixels.MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS
    path = write_picture(tmp_path / "a.png", 60, 40)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert reason_of(path) == Reason.PICTURE_TOO_LARGE


def test_a_large_picture_below_the_limit_opens_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_picture(tmp_path / "a.png", 60, 40)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_picture(path).size == (60, 40)


def test_alpha_is_dropped_and_orientation_ignored(tmp_path: Path):
    hidden = Image.new("RGBA", (4, 2), (10, 20, 30, 0))
    hidden.save(tmp_path / "hidden.png")
    assert open_picture(tmp_path / "hidden.png").getpixel((0, 0)) == (10, 20, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees"
    Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert open_picture(tmp_path / "turned.jpg").size == read_size(tmp_path / "turned.jpg") == (8, 4)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 6))
def test_a_placed_picture_has_the_planned_size_and_white_padding(width: int, height: int, hd_num: int):
    try:
        layout = plan(width, height, hd_num)
    except ValueError:
        return
    placed = place(Image.new("RGB", (width, height), (1, 2, 3)), layout)
    assert placed.shape == (layout.final_height, layout.final_width, 3)
    white = (placed == 255).all(axis=2)
    assert white.sum() == placed.shape[0] * placed.shape[1] - layout.resized_width * layout.resized_height
    assert (placed[~white] == (1, 2, 3)).all()


def test_crops_put_together_are_the_picture_again():
    placed = np.random.default_rng(0).integers(0, 256, (2 * 336, 3 * 336, 3), dtype=np.uint8)
    rows = [np.concatenate(list(row), axis=2) for row in crops(placed).reshape(2, 3, 3, 336, 336)]
    assert np.array_equal(np.concatenate(rows, axis=1).transpose(1, 2, 0), placed)


def test_a_layout_of_another_picture_is_refused():
    with pytest.raises(ValueError, match="60 x 40"):
        place(Image.new("RGB", (60, 41)), plan(60, 40, 4))
    with pytest.raises(ValueError, match="RGB"):
        place(Image.new("L", (60, 40)), plan(60, 40, 4))


@pytest.mark.parametrize("shape", [(336, 335, 3), (336, 336, 4), (336, 336)])
def test_what_is_no_placed_picture_is_not_cut(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="336"):
        crops(np.zeros(shape, dtype=np.uint8))
