"""Answers of the model in the making: what a loss does not show, such as an answer that never ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel

from ixtune.data.template import expand
from ixtune.data.tokenizer import Tokenizer
from ixtune.data.training_set import TrainingSet
from ixtune.training.batch import PictureSource, sample_of

FILE = "samples.jsonl"
# an answer twice as long as the reference, and this, shows what there is to see, endless repetition included
_SPARE_TOKENS = 32
_SHOWN_CHARACTERS = 60


def take(
    model: PeftModel,
    records: TrainingSet,
    indices: Sequence[int],
    pictures: PictureSource,
    tokenizer: Tokenizer,
    dtype: torch.dtype,
) -> list[dict[str, Any]]:
    """Greedy answers to the last question of some records, by the tokens of training up to the answer.

    Nothing random is asked for and the mode of the model is put back: the training goes on as if nobody had looked.
    """
    training = model.training
    model.eval()
    kind = next(model.parameters()).device.type
    try:
        with torch.no_grad(), torch.autocast(kind, dtype, enabled=dtype != torch.float32):
            return [_answer(model, records.record(index), pictures, tokenizer) for index in indices]
    finally:
        model.train(training)


def _answer(model: PeftModel, record: dict[str, Any], pictures: PictureSource, tokenizer: Tokenizer) -> dict[str, Any]:
    device = next(model.parameters()).device
    input_ids, labels = expand(sample_of(record))
    # the last run of targets is the last answer
    end = len(labels) - next(at for at, label in enumerate(reversed(labels)) if label != -100)
    start = end - next((at for at, label in enumerate(reversed(labels[:end])) if label == -100), end)
    images = {
        key: value.to(device) if isinstance(value, torch.Tensor) else value
        for key, value in pictures.of([record]).items()
    }
    stops = (tokenizer.eos_id, tokenizer.end_of_turn_id)
    prompt = torch.tensor([input_ids[:start]], device=device)
    made = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=2 * (end - start) + _SPARE_TOKENS,
        do_sample=False,
        use_cache=True,
        eos_token_id=list(stops),
        pad_token_id=tokenizer.pad_id,
        **images,
    )[0, start:].tolist()
    length = next((at for at, token in enumerate(made) if token in stops), len(made))
    said = next((at for at, token in enumerate(labels[start:end]) if token in stops), end - start)
    return {
        "id": record["id"],
        "question": record["turns"][-2]["text"],
        "reference": tokenizer.decode(labels[start : start + said]).strip(),
        "answer": tokenizer.decode(made[:length]).strip(),
        "ended": length < len(made),
    }


def in_short(sample: dict[str, Any]) -> str:
    """One line of a sample for the reader."""
    texts = (_shorten(sample[key]) for key in ("question", "answer", "reference"))
    line = "sample   {!r} -> {!r}, reference {!r}".format(*texts)
    return line if sample["ended"] else line + "  (did not end)"


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
