"""Greedy answers of the model in the making to the last questions of prepared records."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel

from ixtune.data.text.template import IGNORED, expand
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.model import generation
from ixtune.training.batch import ImageSource, sample_of

# an answer twice as long as the one trained on, and this, shows what there is to see, endless repetition included
SPARE_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said to the last question of a record.

    Attributes:
        text: Without white space around it.
        ended: Whether the model ended it, and not the limit.
    """

    text: str
    ended: bool


def draw(records: int, count: int, seed: int) -> list[int]:
    """Which records to ask, from all over the set; always the same ones, so that measurements can be compared."""
    return sorted(random.Random(seed).sample(range(records), min(count, records)))


def references_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The answers to the last question of a record that are right.

    Each as often as the source gives it: VQA accuracy counts how many people gave an answer.
    """
    return tuple(record["references"]) or (record["turns"][-1]["text"].strip(),)


@contextmanager
def asking(model: torch.nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Evaluation mode and the type of training; the mode of the model is put back.

    Nothing random is asked for: the training goes on as if nobody had looked.
    """
    training = model.training
    model.eval()
    kind = next(model.parameters()).device.type
    try:
        with torch.autocast(kind, dtype, enabled=dtype != torch.float32):
            yield
    finally:
        model.train(training)


def answer(
    model: PeftModel, records: Sequence[dict[str, Any]], images: ImageSource, tokenizer: Tokenizer
) -> list[Answer]:
    """The answers to one batch of records, by the tokens of training up to where the answer begins.

    Each ends with its own limit, whatever the others of the batch need. To be called inside `asking`.
    """
    prompts, limits = zip(*map(_prompt_and_limit, records), strict=True)
    stops = (tokenizer.eos_id, tokenizer.end_of_turn_id)
    made = generation.generate(
        model,
        prompts,
        images.of(records),
        stops=stops,
        pad_id=tokenizer.pad_id,
        do_sample=False,
        max_new_tokens=max(limits),
    )
    found = []
    for ids, limit in zip(made, limits, strict=True):
        said, ended = generation.until_stop(ids[:limit], stops)
        found.append(Answer(tokenizer.decode(said).strip(), ended))
    return found


def _prompt_and_limit(record: dict[str, Any]) -> tuple[list[int], int]:
    input_ids, labels = expand(sample_of(record))
    # the last run of targets is the last answer
    end = len(labels) - next(at for at, label in enumerate(reversed(labels)) if label != IGNORED)
    start = end - next((at for at, label in enumerate(reversed(labels[:end])) if label == IGNORED), end)
    return input_ids[:start], 2 * (end - start) + SPARE_TOKENS
