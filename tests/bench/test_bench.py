"""Measure ratios to plain implementations; fail only if ixtune is not better."""

from __future__ import annotations

from pathlib import Path

import measuring
import numpy as np
import pytest
import torch
from float_pixels import float_crops
from PIL import Image

from ixtune.data.images.header import read_header
from ixtune.data.images.pixels import NONE, open_image, place_and_cut
from ixtune.layout import plan
from ixtune.model.loss import supervised_loss

pytestmark = pytest.mark.bench


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("form", ["jpeg", "png", "webp", "tiff", "gif", "bmp"])
def test_layouts_are_read_from_headers(tmp_path: Path, form: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    paths = [tmp_path / f"{index}.{form}" for index in range(40)]
    for path in paths:
        Image.fromarray(pixels).save(path)

    def headers() -> None:
        for _ in range(10):
            for path in paths:
                header = read_header(path, NONE, name=path.name)
                plan(header.width, header.height, 25)

    def decoding() -> None:
        for path in paths:
            with Image.open(path) as image:
                plan(*image.convert("RGB").size, 25)

    ours, plain = measuring.interleaved(headers, decoding)
    rates = {"images_per_s": len(paths) * 10 / ours, "decoding_images_per_s": len(paths) / plain}
    measuring.record(f"layouts_{form}", rates)
    # for the others Pillow itself reads the whole file (WebP), walks through it (GIF), or has next to nothing to decode
    assert rates["images_per_s"] > {"jpeg": 10, "png": 10}.get(form, 1) * rates["decoding_images_per_s"]


PIXELS = """
import sys
from pathlib import Path
sys.path.insert(0, {bench!r})
from float_pixels import float_crops
from ixtune.data.images.pixels import open_picture, place_and_cut
from ixtune.layout import plan
path = Path({path!r})
small = path.with_name("small.jpeg")
float_crops(small, plan(40, 20, 1)), place_and_cut(open_image(small), plan(40, 20, 1))
layout = plan(3840, 1600, 55)
# measured
"""


def test_pixels_of_an_image_of_55_crops(tmp_path: Path) -> None:
    from ixtune.model.vision import normalise

    coarse = np.random.default_rng(0).integers(0, 256, (200, 480, 3), dtype=np.uint8)
    path = tmp_path / "a.jpeg"
    Image.fromarray(coarse).resize((3840, 1600), Image.Resampling.BICUBIC).save(path, quality=90)
    Image.new("RGB", (40, 20)).save(tmp_path / "small.jpeg")  # loads whatever is loaded at first use
    layout = plan(3840, 1600, 55)
    crops, floats = place_and_cut(open_image(path), layout), float_crops(path, layout)
    assert torch.allclose(normalise(torch.from_numpy(crops)), torch.from_numpy(floats), atol=1e-6)
    ours, plain = measuring.interleaved(
        lambda: place_and_cut(open_image(path), layout), lambda: float_crops(path, layout)
    )
    script = PIXELS.format(bench=str(Path(__file__).parent), path=str(path))
    figures = {
        "ms": ours * 1000,
        "plain_ms": plain * 1000,
        "mb": crops.nbytes / 1e6,
        "plain_mb": floats.nbytes / 1e6,
        "peak_mib": measuring.peak_mib(script + "crops = place_and_cut(open_picture(path), layout)"),
        "plain_peak_mib": measuring.peak_mib(script + "crops = float_crops(path, layout)"),
    }
    measuring.record("pixels_hd55", figures)
    assert figures["ms"] < 0.8 * figures["plain_ms"]
    assert figures["mb"] <= figures["plain_mb"] / 4
    assert figures["peak_mib"] < 0.5 * figures["plain_peak_mib"]


LOSS = """
import torch
from ixtune.model.loss import supervised_loss
torch.set_num_threads(1)
head = torch.nn.Linear(256, 92544, bias=False).requires_grad_(False)
hidden = torch.randn(2048, 256, requires_grad=True)
rows = torch.arange(0, 2048, 16)
targets = torch.randint(0, 92544, (len(rows),))
head(hidden[:1])
# measured
"""
OURS = "supervised_loss(hidden, rows, targets, head).backward()"
FULL = "torch.nn.functional.cross_entropy(head(hidden).float()[rows], targets).backward()"


def test_loss_on_supervised_rows_at_the_7bs_vocabulary() -> None:
    head = torch.nn.Linear(256, 92544, bias=False).requires_grad_(False)
    hidden = torch.randn(2048, 256, requires_grad=True)
    rows = torch.arange(0, 2048, 16)
    targets = torch.randint(0, 92544, (len(rows),))
    ours, plain = measuring.interleaved(
        lambda: supervised_loss(hidden, rows, targets, head).backward(),
        lambda: torch.nn.functional.cross_entropy(head(hidden).float()[rows], targets).backward(),
        rounds=3,
    )
    memory, plain_memory = measuring.peak_mib(LOSS + OURS), measuring.peak_mib(LOSS + FULL)
    figures = {"time_ratio": ours / plain, "memory_ratio": memory / plain_memory, "memory_mib": memory}
    measuring.record("loss", figures)
    assert figures["time_ratio"] < 0.2
    assert figures["memory_ratio"] < 0.2


def test_segments_against_a_block_mask() -> None:
    from torch.nn.functional import scaled_dot_product_attention

    from ixtune.model.attention import segment_attention

    length, segments = 4096, 8
    query = torch.randn(1, 8, length, 32)
    bounds = torch.arange(0, length + 1, length // segments, dtype=torch.int32)
    owner = torch.arange(length) // (length // segments)
    mask = (owner[:, None] == owner[None]) & torch.ones(length, length, dtype=torch.bool).tril()
    module = torch.nn.Module()
    ours, plain = measuring.interleaved(
        lambda: segment_attention(module, query, query, query, None, cu_seq_lens_q=bounds),
        lambda: scaled_dot_product_attention(query, query, query, attn_mask=mask),
        rounds=3,
    )
    measuring.record("segments", {"time_ratio": ours / plain, "tokens": length, "segments": segments})
    assert ours < 0.5 * plain
