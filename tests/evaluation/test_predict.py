"""Test that images are opened and laid out as in the adapter's training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from records import write_image

from ixtune.adapter import attach, bundle
from ixtune.answering.settings import Settings
from ixtune.base import resolve
from ixtune.checkpoint.identity import base_identity
from ixtune.checkpoint.shards import open_checkpoint
from ixtune.data.images.pixels import NONE, Corrections, crops, open_image, place
from ixtune.data.prepared.image_files import ImageFiles
from ixtune.data.rejects import RecordError
from ixtune.evaluation.predict import predict_one
from ixtune.evaluation.questions import ImageView, prompt_of
from ixtune.evaluation.session import Loaded
from ixtune.family import FOUR_KHD
from ixtune.layout import plan
from ixtune.model.loading import load_base
from ixtune.recipe import recipe as recipes
from ixtune.training.batch import ImageSource


@pytest.fixture
def lying(tmp_path: Path) -> Path:
    """Write a small image whose EXIF orientation is rotated."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.linear_gradient("L").resize((400, 300)).convert("RGB").save(tmp_path / "lying.png", exif=exif)
    return tmp_path / "lying.png"


def test_the_default_view_matches_the_reference(lying: Path) -> None:
    prompt = prompt_of("What?", [lying], ImageView(4))
    (stored,) = prompt.images
    assert prompt.turns[0].text == "<ImageHere>What?"
    assert prompt.image_tokens == (plan(400, 300, 4).tokens,)
    made, grid = ImageSource(ImageFiles((Path("/"),))).crops({"pictures": [stored]}, 0)
    plain = plan(400, 300, 4)
    assert grid == (plain.rows, plain.cols)
    assert torch.equal(made, torch.from_numpy(crops(place(open_image(lying), plain))))


def test_corrections_and_upscale_change_the_pixels(lying: Path) -> None:
    corrections = Corrections(exif=True)
    (stored,) = prompt_of("What?", [lying], ImageView(4, False, corrections)).images
    made, grid = ImageSource(ImageFiles((Path("/"),), corrections)).crops({"pictures": [stored]}, 0)
    assert grid == (2, 1)
    upright = open_image(lying, corrections)
    assert torch.equal(made, torch.from_numpy(crops(place(upright, plan(300, 400, 4, upscale=False)))))


def test_an_unusable_image_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"too thin .*thin\.png"):
        prompt_of("What?", [write_image(tmp_path / "thin.png", 1, 3000)], ImageView(1))
    with pytest.raises(RecordError, match=r"none\.png"):
        prompt_of("What?", [tmp_path / "none.png"], ImageView(1))


def test_an_adapter_has_its_own_view_and_a_base_the_default(tmp_path: Path, lying: Path) -> None:
    base = resolve("nano")
    model, _ = load_base(base, quantize=False, dtype=torch.float32)
    (tmp_path / "recipe.yaml").write_text(f"base: nano\ndata:\n  train: x\noutput: {tmp_path}\n", encoding="utf-8")
    recipe = recipes.load(tmp_path / "recipe.yaml", ("training.compute_dtype=fp32", "adapter.quantize=none"))
    info = {
        "base": "nano",
        "base_identity": base_identity(open_checkpoint(base)),
        "quantize": "none",
        "recipe": recipe.model_dump(mode="json"),
        "hd_num": 2,
        "upscale": False,
        "corrections": ["exif", "first-frame"],
    }
    bundle.save(attach.attach(model, recipe.adapter), tmp_path / "adapter", info)
    loaded = Loaded(None, tmp_path / "adapter", None)
    assert (loaded.hd_num, loaded.view(None).upscale) == (2, False)
    assert loaded.view(None).corrections == Corrections(exif=True, first_frame=True)
    predict_one(loaded, "Which number?", [lying], loaded.view(None), Settings(2))
    plain = Loaded("nano", None, None)
    assert (plain.hd_num, plain.view(None)) == (None, ImageView(FOUR_KHD.hd_num, True, NONE))
