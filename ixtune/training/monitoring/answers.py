"""Greedy answers during training to the last questions of prepared records."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ixtune.answering.answerer import Answer, Answerer, Request
from ixtune.answering.batches import Size
from ixtune.answering.prompt import start_key
from ixtune.data.record import Turn
from ixtune.data.text.template import IGNORED, expand
from ixtune.training.batch import sample_of

# twice the reference's length and this is enough to show an answer that does not end
SPARE_TOKENS = 32


def draw(records: int, count: int, seed: int) -> list[int]:
    """Return indices of random records, the same ones each time, so that measurements can be compared."""
    return sorted(random.Random(seed).sample(range(records), min(count, records)))


def references_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the right answers to the last question of a record.

    Each occurs as often as in the source: VQA accuracy counts how many people gave an answer.
    """
    return tuple(record["references"]) or (record["turns"][-1]["text"].strip(),)


@contextmanager
def asking(model: torch.nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Run in evaluation mode under autocast with the dtype of training; restore the mode of the model.

    Draws no random number, so that measuring does not change the training.
    """
    training = model.training
    model.eval()
    kind = next(model.parameters()).device.type
    try:
        with torch.autocast(kind, dtype, enabled=dtype != torch.float32):
            yield
    finally:
        model.train(training)


def answer(answerer: Answerer, records: Sequence[dict[str, Any]]) -> list[Answer]:
    """Return the answers to one batch of records, from the training tokens before the last answer.

    Each ends at its own limit, whatever the others of the batch need. Call it inside `asking`.
    """
    return answerer.answer_requests([_request(record) for record in records])


def size_of(record: Mapping[str, Any]) -> Size:
    """Return the size of a record in a batch, its longest answer included; text before an image counts as its own."""
    image_tokens = sum(image["tokens"] for image in record["pictures"])
    turns = [Turn(turn["role"], turn["text"]) for turn in record["turns"]]
    # prompt and answer, and at most as much again and `SPARE_TOKENS`: see `_request`
    own = record["length"] - image_tokens + record["supervised_tokens"] + SPARE_TOKENS
    return Size(start_key(turns, record["pictures"]), image_tokens, own)


def _request(record: dict[str, Any]) -> Request:
    input_ids, labels = expand(sample_of(record))
    # the last run of targets is the last answer
    end = len(labels) - next(at for at, label in enumerate(reversed(labels)) if label != IGNORED)
    start = end - next((at for at, label in enumerate(reversed(labels[:end])) if label == IGNORED), end)
    return Request(input_ids[:start], record["pictures"], 2 * (end - start) + SPARE_TOKENS)
