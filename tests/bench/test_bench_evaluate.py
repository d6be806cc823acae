"""Benchmark questions about one page with and without a shared prefix, and an evaluation of four models.

CPU seconds, one thread, both ways in turn. The way without sharing is what ixtune did before: batches padded on the
left in which every question pays for its page.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import measuring
import pytest
import torch
from adapters import section, stir
from PIL import Image

from ixtune.adapter import attach, bundle
from ixtune.answering.answerer import Answer, Answerer, Request
from ixtune.answering.settings import Settings
from ixtune.base import resolve
from ixtune.checkpoint.identity import base_identity
from ixtune.checkpoint.shards import open_checkpoint
from ixtune.data.prepare import prepare
from ixtune.data.prepared import store
from ixtune.data.prepared.manifest import PrepareOptions
from ixtune.data.sources.source import Source as DataSource
from ixtune.evaluation import exam
from ixtune.evaluation.contenders import contenders
from ixtune.evaluation.evaluate import evaluate
from ixtune.evaluation.exam import exam_of
from ixtune.evaluation.options import EvaluationOptions, EvaluationSource
from ixtune.evaluation.session import Loaded
from ixtune.evaluation.shared_vectors import SharedVectors
from ixtune.model.loading import load_base
from ixtune.recipe import recipe as recipes
from ixtune.training.batch import ImageSource

pytestmark = [pytest.mark.bench, pytest.mark.timeout(7200)]

PAGES, QUESTIONS, ROUNDS = 4, 4, 3
NEW_TOKENS = 16


def separately(answerer: Answerer, requests: Sequence[Request], streamer: Any = None) -> list[Answer]:
    """Answer a batch without shared prefixes, as the reference for time and ids."""
    longest = max(len(request.ids) for request in requests)
    pad = answerer.tokenizer.pad_id
    with torch.no_grad():
        made = answerer.model.generate(
            input_ids=torch.tensor([[pad] * (longest - len(one.ids)) + [*one.ids] for one in requests]),
            attention_mask=torch.tensor([[0] * (longest - len(one.ids)) + [1] * len(one.ids) for one in requests]),
            eos_token_id=list(answerer.stops),
            pad_token_id=pad,
            max_new_tokens=max(one.max_new_tokens for one in requests),
            **answerer.settings.arguments(),
            **answerer.images.of([{"pictures": one.images} for one in requests]),
        )
    return [answerer._answer(ids, one) for ids, one in zip(made[:, longest:].tolist(), requests, strict=True)]


@contextmanager
def without_sharing() -> Iterator[None]:
    """Answer and measure the loss of each question separately, and encode the images for each model."""

    def own_source(vectors: SharedVectors, loaded: Loaded) -> ImageSource:
        return ImageSource(vectors.files, loaded.base_model, vectors.max_bytes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Answerer, "answer_requests", separately)
        patch.setattr(exam, "group", lambda _: None)
        patch.setattr(SharedVectors, "source", own_source)
        yield


def pages(folder: Path, hd_num: int, count: int = PAGES) -> Path:
    """Return a prepared set of A4 pages with several questions each."""
    rows = []
    for page in range(count):
        Image.radial_gradient("L").resize((1240, 1754)).rotate(page).convert("RGB").save(folder / f"{page}.png")
        rows += [
            {
                "id": f"{page}-{number}",
                "image": [f"{page}.png"],
                "conversations": [
                    {"from": "user", "value": f"<ImageHere>What is in row {number} of page {page}?"},
                    {"from": "assistant", "value": str(number)},
                ],
            }
            for number in range(QUESTIONS)
        ]
    (folder / "data.json").write_text(json.dumps(rows), encoding="utf-8")
    source, options = DataSource(path=str(folder / "data.json")), PrepareOptions(hd_num=hd_num)
    prepare([source], folder / "prepared", base=resolve("nano"), options=options)
    return folder / "prepared"


@pytest.mark.parametrize("hd_num", [9, 25])
def test_answers_from_a_shared_prefix_against_separate_ones(tmp_path: Path, hd_num: int) -> None:
    asked = exam_of(store.load(pages(tmp_path, hd_num)))
    prompts = [question.prompt for question in asked.questions]
    loaded = Loaded("nano", None, None)
    found: dict[str, list[Answer]] = {}
    for dtype in ("fp32", "bf16"):
        model = load_base(resolve("nano"), quantize=False, dtype=torch.float32)[0] if dtype == "fp32" else loaded.model
        images = ImageSource(asked.files, model)

        def answers(way: str, model: Any = model, images: ImageSource = images) -> None:
            answerer = Answerer(model, loaded.tokenizer, images, Settings(NEW_TOKENS))
            made = {
                at: one
                for batch in answerer.batches(prompts, 8)
                for at, one in zip(batch, answerer.answer([prompts[at] for at in batch]), strict=True)
            }
            found[way] = [made[at] for at in range(len(prompts))]

        def separate(answers: Any = answers) -> None:
            with without_sharing():
                answers("separate")

        shared_s, separate_s = measuring.interleaved(lambda answers=answers: answers("shared"), separate, ROUNDS)
        equal = sum(map(Answer.__eq__, found["shared"], found["separate"])) / len(prompts)
        assert dtype == "bf16" or equal == 1
        figures = {
            "hd_num": hd_num, "fp32": float(dtype == "fp32"), "pages": PAGES, "questions_a_page": QUESTIONS,
            "tokens_a_page": sum(prompts[0].image_tokens), "shared_s": shared_s, "separate_s": separate_s,
            "ratio": separate_s / shared_s, "equal_answers": equal,
        }  # fmt: skip
        measuring.record("answers", figures)
        assert separate_s >= 3 * shared_s


@pytest.mark.parametrize(("hd_num", "count"), [(9, PAGES), (25, 2)])
def test_an_evaluation_of_four_models(tmp_path: Path, hd_num: int, count: int) -> None:
    base, data = resolve("nano"), pages(tmp_path, hd_num, count)
    (tmp_path / "recipe.yaml").write_text(f"base: nano\ndata:\n  train: x\noutput: {tmp_path}\n", encoding="utf-8")
    recipe = recipes.load(tmp_path / "recipe.yaml", ("training.compute_dtype=fp32", "adapter.quantize=none"))
    record = {
        "base": "nano", "base_identity": base_identity(open_checkpoint(base)), "quantize": "none",
        "recipe": recipe.model_dump(mode="json"), "hd_num": hd_num,
    }  # fmt: skip
    for seed in range(3):
        torch.manual_seed(seed)
        model = attach.attach(load_base(base, quantize=False, dtype=torch.float32)[0], section("plain"))
        stir(model, 0.01)
        bundle.save(model, tmp_path / f"adapter{seed}", record)
    models = contenders("nano", [f"a{seed}={tmp_path}/adapter{seed}" for seed in range(3)], [])
    options = EvaluationOptions(("anls",), max_new_tokens=NEW_TOKENS)
    found: dict[str, dict[str, Any]] = {}

    def shared() -> None:
        found["shared"] = evaluate(EvaluationSource(path=data), models, options).content

    def separate() -> None:
        with without_sharing():
            found["separate"] = evaluate(EvaluationSource(path=data), models, options).content

    shared_s, separate_s = measuring.interleaved(shared, separate, 1)
    said = [[answer["answers"] for answer in found[way]["answers"]] for way in ("shared", "separate")]
    assert said[0] == said[1]
    figures = {
        "models": len(models), "hd_num": hd_num, "pages": count, "questions_a_page": QUESTIONS, "shared_s": shared_s,
        "separate_s": separate_s, "ratio": separate_s / shared_s,
    }  # fmt: skip
    measuring.record("evaluate", figures)
    assert separate_s >= 3 * shared_s
