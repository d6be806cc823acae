"""Test merged models in plain transformers: its Auto classes find processor and image processor."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from adapters import section, stir
from PIL import Image
from records import write_image
from small_base import RELEASED_CONFIG
from transformers import AutoImageProcessor, AutoModelForCausalLM, AutoProcessor, AutoTokenizer

from ixtune.adapter import attach, bundle
from ixtune.answering.answerer import Answerer
from ixtune.answering.settings import Settings
from ixtune.base import resolve
from ixtune.checkpoint.identity import base_identity
from ixtune.checkpoint.shards import open_checkpoint
from ixtune.data.images.pixels import Corrections
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.evaluation.questions import ImageView, prompt_of
from ixtune.evaluation.session import Loaded
from ixtune.exporting.export import export
from ixtune.merging.merge import merge
from ixtune.model.loading import load_base
from ixtune.processing import IXC2ImageProcessor, IXC2Processor, IXC2Tokenizer

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an adapter of the embedded base with non-zero updates, recorded at hd_num 2 with a correction."""
    base = resolve("nano")
    model = attach.attach(load_base(base, quantize=False, dtype=torch.float32)[0], section("plain"))
    stir(model, 0.02)
    folder = tmp_path_factory.mktemp("processor") / "adapter"
    record = {"base": "nano", "base_identity": base_identity(open_checkpoint(base)), "quantize": "none"}
    record |= {"hd_num": 2, "upscale": False, "corrections": ["alpha"]}
    record["recipe"] = {"training": {"compute_dtype": "fp32"}}
    bundle.save(model, folder, record)
    return folder


@pytest.fixture(scope="module", params=["merge", "export"])
def folder(request: pytest.FixtureRequest, adapter: Path) -> Path:
    out = adapter.parent / request.param
    if request.param == "merge":
        merge(adapter, resolve("nano"), out)
    else:
        export(adapter, resolve("nano"), out, profile="transformers")
    return out


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    clear = Image.new("RGBA", (90, 40), (200, 10, 10, 128))
    clear.save(tmp_path / "clear.png")
    return [write_image(tmp_path / "a.png", 60, 100), tmp_path / "clear.png"]


def test_plain_transformers_code_answers_like_ixtune_predict(folder: Path, images: list[Path]) -> None:
    loaded = Loaded(str(folder), None, None)
    assert loaded.view(None) == ImageView(2, False, Corrections(alpha=True))
    code = f"""
        import ixtune
        from transformers import AutoModelForImageTextToText, AutoProcessor

        processor = AutoProcessor.from_pretrained({str(folder)!r})
        model = AutoModelForImageTextToText.from_pretrained({str(folder)!r}, dtype="auto")
        inputs = processor(images=[{str(images[0])!r}], text="Which number?", return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        print(ids[0, inputs["input_ids"].shape[1]:].tolist())
        print(processor.batch_decode(ids, inputs))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "trust_remote_code" not in done.stderr
    prompt = prompt_of("Which number?", images[:1], loaded.view(None))
    from ixtune.data.prepared.image_files import ImageFiles
    from ixtune.training.batch import ImageSource

    source = ImageSource(ImageFiles((Path("/"),), loaded.view(None).corrections))
    with loaded.autocast():
        answer = Answerer(loaded.model, loaded.tokenizer, source, Settings(8)).answer([prompt])[0]
    assert done.stdout.splitlines()[1] == repr([answer.text])


def test_ids_and_crops_match_predict(folder: Path, images: list[Path]) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    assert isinstance(processor, IXC2Processor)
    assert isinstance(AutoTokenizer.from_pretrained(folder), IXC2Tokenizer)
    loaded = Loaded(str(folder), None, None)
    inputs = processor(images=images, text="First <ImageHere> then <ImageHere>, what?", return_tensors="pt")
    prompt = prompt_of("First <ImageHere> then <ImageHere>, what?", images, loaded.view(None))
    assert inputs["input_ids"].tolist() == [prompt.ids(loaded.tokenizer)]
    from ixtune.data.prepared.store import ImageFiles
    from ixtune.training.batch import ImageSource

    expected = ImageSource(ImageFiles((Path("/"),), loaded.view(None).corrections)).of([{"pictures": prompt.images}])
    assert torch.equal(inputs["crops"], expected["crops"])
    assert inputs["grids"].tolist() == [list(grid) for grid in expected["grids"]]
    opened = [Image.open(path) for path in images]
    again = processor(images=opened, text="First <ImageHere> then <ImageHere>, what?")
    assert torch.equal(again["crops"], inputs["crops"])


def test_a_batch_answers_like_single_questions(folder: Path, images: list[Path]) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    questions, shown = ["How many?", "And here, in longer words?", "No image"], [[images[0]], images, []]
    together = processor(images=shown, text=questions, padding=True, return_tensors="pt")
    options = {"max_new_tokens": 6, "do_sample": False}
    found = processor.batch_decode(model.generate(**together, **options), together)
    for question, of_one, answer in zip(questions, shown, found, strict=True):
        alone = processor(images=of_one or None, text=question, return_tensors="pt")
        assert processor.batch_decode(model.generate(**alone, **options), alone) == [answer]


def test_a_saved_processor_loads_with_its_settings(folder: Path, tmp_path: Path) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    processor.image_processor.hd_num = 7
    processor.save_pretrained(tmp_path)
    again = IXC2Processor.from_pretrained(tmp_path)
    assert (again.image_processor.hd_num, again.image_processor.upscale) == (7, False)
    assert again.image_processor.corrections == ["alpha"]
    assert isinstance(AutoImageProcessor.from_pretrained(folder), IXC2ImageProcessor)


def test_images_that_do_not_match_the_questions_are_refused(folder: Path, images: list[Path]) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    with pytest.raises(ValueError, match="2 texts: pass images as a list of 2 lists"):
        processor(images=images[:1], text=["a", "b"])
    with pytest.raises(TypeError, match="a text is needed"):
        processor(images=images)
    with pytest.raises(TypeError, match="unknown arguments: do_resize; use hd_num"):
        processor(images=images, text="a", do_resize=False)
    with pytest.raises(ValueError, match="should be the same as the number of images"):
        processor(images=images, text="one <ImageHere>")


ORIGINAL_TOKENIZER = {
    "bos_token": "<s>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "</s>",
    "model_max_length": 1000000000000000019884624838656,
    "pad_token": "</s>",
    "unk_token": "<unk>",
}


@pytest.mark.parametrize(
    ("way", "tokenizer_class"),
    [
        ("merge", "InternLMXComposer2Tokenizer"),
        ("merge", "InternLM2Tokenizer"),
        ("transformers", "InternLMXComposer2Tokenizer"),
    ],
)
def test_remote_code_in_original_files_is_ignored_without_a_prompt(
    adapter: Path, tmp_path: Path, way: str, tokenizer_class: str
) -> None:
    """Use configuration files of the original format, and code that leaves a trace if it runs."""
    base = tmp_path / "base"
    shutil.copytree(resolve("nano"), base)
    config = json.loads((base / "config.json").read_text())
    of_the_original = {key: RELEASED_CONFIG[key] for key in ("auto_map", "architectures", "attn_implementation")}
    (base / "config.json").write_text(json.dumps({**config, **of_the_original}))
    asked_for = f"tokenization_internlm_xcomposer2.{tokenizer_class}"
    of_the_tokenizer = {
        **ORIGINAL_TOKENIZER,
        "auto_map": {"AutoTokenizer": [asked_for, None]},
        "tokenizer_class": tokenizer_class,
    }
    (base / "tokenizer_config.json").write_text(json.dumps(of_the_tokenizer))
    for name in ("tokenization", "modeling", "configuration"):
        (base / f"{name}_internlm_xcomposer2.py").write_text(f"open({str(tmp_path / 'it ran')!r}, 'w')\n")
    if way == "merge":
        merge(adapter, base, tmp_path / "out")
        kept = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
        assert kept == of_the_tokenizer, "the original's own code needs it as it was"
    else:
        export(adapter, base, tmp_path / "out", profile="transformers")
    code = f"""
        from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor, AutoTokenizer
        import ixtune  # after transformers, too
        from ixtune.processing import IXC2Tokenizer

        folder = {str(tmp_path / "out")!r}
        tokenizer, processor = AutoTokenizer.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
        print(*(type(one).__name__ for one in (AutoConfig.from_pretrained(folder), processor, model)))
        print(*(isinstance(one, IXC2Tokenizer) for one in (tokenizer, processor.tokenizer)))
        print(tokenizer("1 ab").input_ids, processor(text="1 ab")["input_ids"][0])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    classes, ours, ids = done.stdout.splitlines()
    assert classes.split() == ["IXC2Config", "IXC2Processor", "IXC2ForCausalLM"]
    assert ours == "True True"
    tokenizer = IXC2Tokenizer(str(base / "tokenizer.model"))
    prompt = prompt_of("1 ab", [], ImageView(2)).ids(Tokenizer(base / "tokenizer.model"))
    assert ids == f"{tokenizer('1 ab').input_ids} {prompt}"
    assert "trust_remote_code" not in done.stderr
    assert not (tmp_path / "it ran").exists()
