"""Compare images with the reference, bit for bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ixtune.data.images.header import read_header
from ixtune.data.images.pixels import NONE, crops, open_image, place, place_and_cut
from ixtune.layout import plan


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def sources(golden: Path) -> Iterator[tuple[dict, Image.Image]]:
    """Yield the entries of images.json with their images; stored pixels for JPEGs that decode differently here."""
    for entry in json.loads((golden / "images.json").read_text(encoding="utf-8"))["images"]:
        path = golden / entry["file"]
        image = open_image(path)
        if sha256(np.asarray(image)) != entry["rgb_sha256"]:
            image = open_image(path.with_name(f"{path.stem}.decoded.png"))
        yield entry, image


def test_opened_images_match_the_reference_in_pixels_and_size(golden: Path):
    entries = list(sources(golden))
    assert entries
    for entry, image in entries:
        header = read_header(golden / entry["file"], NONE, name=entry["file"])
        assert list(image.size) == entry["size"] == [header.width, header.height]
        assert sha256(np.asarray(image)) == entry["rgb_sha256"], entry["file"]


def test_placed_images_match_the_reference_bit_for_bit(golden: Path):
    for entry, image in sources(golden):
        for output in entry["outputs"]:
            layout = plan(*image.size, output["hd_num"])
            placed = place(image, layout)
            assert (layout.rows, layout.cols) == (output["rows"], output["cols"])
            assert [layout.final_width, layout.final_height] == output["size"]
            assert placed.dtype == np.uint8
            assert sha256(placed) == output["pixel_sha256"], output["file"]
            assert np.array_equal(placed, np.asarray(Image.open(golden / output["file"]).convert("RGB")))


def test_placed_small_images_match_the_reference(golden: Path):
    entries = json.loads((golden / "tiny" / "samples.json").read_text(encoding="utf-8"))["images"].values()
    assert entries
    for entry in entries:
        image = open_image(golden / entry["file"])
        layout = plan(*image.size, entry["hd_num"])
        assert (layout.rows, layout.cols, layout.tokens) == (entry["rows"], entry["cols"], entry["tokens"])
        wanted = np.asarray(Image.open(golden / entry["hd_file"]).convert("RGB"))
        assert np.array_equal(place(image, layout), wanted), entry["file"]


def test_crops_go_row_by_row_over_the_placed_image(golden: Path):
    for entry, image in sources(golden):
        output = entry["outputs"][-1]
        placed = place(image, plan(*image.size, output["hd_num"]))
        cut = crops(placed)
        assert np.array_equal(place_and_cut(image, plan(*image.size, output["hd_num"])), cut)
        assert cut.shape == (output["rows"] * output["cols"], 3, 336, 336)
        for number, crop in enumerate(cut):
            row, col = divmod(number, output["cols"])
            window = placed[row * 336 : (row + 1) * 336, col * 336 : (col + 1) * 336]
            assert np.array_equal(crop.transpose(1, 2, 0), window)


def test_the_image_is_really_transposed(golden: Path):
    """Resizing with swapped arguments instead would change a fifth of the pixels by one level."""
    differing = 0
    for entry, image in sources(golden):
        layout = plan(*image.size, entry["outputs"][0]["hd_num"])
        if layout.transposed:
            direct = np.asarray(image.resize((layout.resized_width, layout.resized_height), Image.Resampling.BILINEAR))
            inner = place(image, layout)[:, layout.pad_left : layout.pad_left + layout.resized_width]
            differing += int((direct != inner).any(axis=2).sum())
    assert differing
