"""Generate sample answers during training; they show problems that no metric does, such as answers that never end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import PeftModel

from ixtune.answering.answerer import Answerer
from ixtune.answering.settings import Settings
from ixtune.data.prepared.training_set import TrainingSet
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.model.prefix_cache import PrefixCache
from ixtune.training.batch import ImageSource
from ixtune.training.monitoring import answers

FILE = "samples.jsonl"
_SHOWN_CHARACTERS = 60


def take(
    model: PeftModel,
    records: TrainingSet,
    indices: Sequence[int],
    images: ImageSource,
    tokenizer: Tokenizer,
    dtype: torch.dtype,
    leave: Callable[[], bool] = lambda: False,
) -> list[dict[str, Any]] | None:
    """Return greedy answers to the last question of some records, with their references.

    None is returned once `leave` returns True; it is called before each token.
    """
    made = []
    answerer = Answerer(model, tokenizer, images, Settings(), PrefixCache(0), leave=leave)
    with answers.asking(model, dtype):
        for index in indices:
            record = records.record(index)
            (answer,) = answers.answer(answerer, [record])
            if leave():
                return None
            made.append(
                {
                    "id": record["id"],
                    "question": record["turns"][-2]["text"],
                    "reference": answers.references_of(record)[0],
                    "answer": answer.text,
                    "ended": answer.finish == "stop",
                }
            )
    return made


def in_short(sample: dict[str, Any]) -> str:
    """Return one line that shows a sample."""
    texts = (_shorten(sample[key]) for key in ("question", "answer", "reference"))
    line = "sample   {!r} -> {!r}, reference {!r}".format(*texts)
    return line if sample["ended"] else line + "  (did not end)"


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
