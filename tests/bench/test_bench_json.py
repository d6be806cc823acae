"""Benchmark answers that follow a JSON schema against free ones: CPU time of a step of eight answers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import measuring
import pytest
import torch
from transformers import LogitsProcessorList

from ixtune.answering.json_logits import JsonLogits
from ixtune.answering.json_schema import JsonGrammar, checked_schema
from ixtune.base import resolve
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.model import generation
from ixtune.model.loading import load_base

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]

ROWS, TOKENS = 8, 64
LINE = {"type": "object", "properties": {"name": {"type": "string"}, "price": {"type": "number"}}}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"shop": {"type": "string"}, "lines": {"type": "array", "minItems": 1000, "items": LINE}},
    "required": ["shop", "lines"],
}
ANSWER = '{"shop": "Corner store", "lines": [' + ", ".join(['{"name": "bread", "price": 2.50}'] * 20)


@pytest.mark.parametrize("vocabulary", ["nano", "released"])
def test_the_masks_of_a_step(vocabulary: str, request: pytest.FixtureRequest) -> None:
    path = resolve("nano") / "tokenizer.model"
    if vocabulary == "released":
        path = Path(request.getfixturevalue("released_tokenizer"))
    tokenizer = Tokenizer(path)
    began = time.process_time()
    grammar = JsonGrammar(checked_schema(SCHEMA, "here"), tokenizer)
    vocabulary_s = time.process_time() - began
    began = time.process_time()
    JsonGrammar(checked_schema(SCHEMA, "here"), tokenizer)
    schema_s = time.process_time() - began
    ids = torch.tensor([tokenizer.encode(ANSWER)] * ROWS)
    scores = torch.zeros(ROWS, tokenizer.vocab_size)

    def held() -> None:
        logits = JsonLogits([grammar] * ROWS)
        for length in range(ids.shape[1]):
            logits(ids[:, :length], scores)

    def free() -> None:
        logits = JsonLogits([None] * ROWS)
        for length in range(ids.shape[1]):
            logits(ids[:, :length], scores)

    held_s, free_s = measuring.interleaved(held, free)
    step_ms = (held_s - free_s) / ids.shape[1] * 1e3
    figures = {
        "pieces": tokenizer.vocab_size, "rows": ROWS, "tokens": ids.shape[1], "vocabulary_s": vocabulary_s,
        "schema_s": schema_s, "step_ms": step_ms,
    }  # fmt: skip
    measuring.record("json_masks", figures)
    assert step_ms < 10


def test_answers_of_nano_with_and_without_a_schema() -> None:
    folder = resolve("nano")
    tokenizer = Tokenizer.from_base(folder)
    model, _ = load_base(folder, quantize=False, dtype=torch.float32)
    grammar = JsonGrammar(checked_schema(SCHEMA, "here"), tokenizer)
    prompts = [tokenizer.encode("What stands on this receipt?")] * ROWS

    def answers(*processors: JsonLogits) -> None:
        generation.generate(
            model, prompts, [None] * ROWS, stops=(tokenizer.eos_id,), pad_id=tokenizer.pad_id,
            max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False,
            logits_processor=LogitsProcessorList(processors),
        )  # fmt: skip

    held_s, free_s = measuring.interleaved(lambda: answers(JsonLogits([grammar] * ROWS)), answers)
    figures = {
        "rows": ROWS, "tokens": TOKENS, "held_ms": held_s / TOKENS * 1e3, "free_ms": free_s / TOKENS * 1e3,
        "ratio": held_s / free_s,
    }  # fmt: skip
    measuring.record("json_answers", figures)
    assert held_s <= 1.5 * free_s
