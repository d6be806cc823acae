"""Test that merged and exported models end their answers in plain transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import save_on_nano
from in_process import call
from records import write_image
from transformers import AutoModelForImageTextToText, AutoProcessor, LogitsProcessor, pipeline

import ixtune
from ixtune.base import shipped
from ixtune.data.generation_file import GENERATION_FILE, with_stops, write_generation_file
from ixtune.data.text.tokenizer import Tokenizer

END = Tokenizer.from_base(shipped("nano")).end_of_turn_id


class Answer(LogitsProcessor):
    """Makes a model say one word, end the turn, and then say it forever."""

    def __init__(self, prompt: int, word: int) -> None:
        self.prompt, self.word = prompt, word

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        said = input_ids.shape[1] - self.prompt
        made = torch.full_like(scores, -torch.inf)
        made[:, END if said == 1 else self.word] = 0
        return made


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    save_on_nano(folder / "adapter", hd_num=1)
    return folder


@pytest.mark.parametrize(
    "command",
    [("merge",), ("merge", "--onto", "nf4"), ("export", "--profile", "transformers"), ("export", "--profile", "nf4")],
    ids=" ".join,
)
def test_generate_stops_at_the_end_of_a_turn(run: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    verb, *options = command
    done = call(verb, run, "--out", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto")
    image = str(write_image(tmp_path / "a.png", 60, 40))
    inputs = processor(images=[image], text="Which number?", return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    word = processor.tokenizer("7")["input_ids"][0]
    how: dict[str, Any] = {"max_new_tokens": 9, "do_sample": False, "logits_processor": [Answer(length, word)]}
    assert model.generate(**inputs, **how)[0, length:].tolist() == [word, END]
    ask = pipeline("image-text-to-text", model=model, processor=processor)
    messages = [
        {"role": "user", "content": [{"type": "image", "url": image}, {"type": "text", "text": "Which number?"}]}
    ]
    (made,) = ask(text=messages, generate_kwargs=how, return_full_text=False)
    assert made["generated_text"] == "7"


def test_a_loaded_adapter_stops_too(run: Path) -> None:
    assert ixtune.load_model(adapter=run).generation_config.eos_token_id == [2, END]


def test_the_other_settings_of_the_base_are_kept(tmp_path: Path) -> None:
    given = {"_from_model_config": True, "eos_token_id": 2, "max_length": 4480, "use_cache": False}
    assert with_stops(given, [2, 6]) == {"eos_token_id": [2, 6], "max_length": 4480, "use_cache": False}
    named = {"_from_model_config": True, "eos_token_id": [6, 2]}
    assert with_stops(named, [2, 6]) == named
    for name, text in (("whole", "{}"), ("damaged", "{"), ("list", "[]")):
        base, out = tmp_path / name, tmp_path / f"{name}-out"
        base.mkdir()
        out.mkdir()
        (base / GENERATION_FILE).write_text(text)
        write_generation_file(base, out)  # without a tokenizer
        assert (out / GENERATION_FILE).read_text() == text
        (base / "tokenizer.model").write_bytes((shipped("nano") / "tokenizer.model").read_bytes())
        write_generation_file(base, out)
        stops = json.dumps({"bos_token_id": 1, "pad_token_id": 2, "eos_token_id": [2, END]}, indent=2) + "\n"
        assert (out / GENERATION_FILE).read_text() == (stops if name == "whole" else text)


@pytest.mark.parametrize("present", [True, False])
def test_the_profile_original_keeps_the_file_of_the_base(run: Path, tmp_path: Path, present: bool) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for path in shipped("nano").iterdir():
        if present or path.name != GENERATION_FILE:
            (base / path.name).write_bytes(path.read_bytes())
    done = call("export", run, "--profile", "original", "--base", base, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    if present:
        assert (tmp_path / "out" / GENERATION_FILE).read_bytes() == (base / GENERATION_FILE).read_bytes()
    else:
        assert not (tmp_path / "out" / GENERATION_FILE).exists()
