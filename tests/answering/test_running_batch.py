"""Test that rows joining and leaving a running batch get the same tokens as alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ixtune.answering.running_batch import Row, RunningBatch
from ixtune.answering.sampler import Sampler
from ixtune.answering.settings import Settings
from ixtune.model import generation
from ixtune.model.loading import load_base
from ixtune.model.shared_prefix import compute_prefix

TOKENS = 8
PROMPTS = [[1, 5, 6, 7], [1, 9, 10, 11, 12, 13, 14], [1, 20], [1, 5, 6, 40, 41, 42]]
ROWS = [("text", 0), ("page", 0), ("text", 1), ("page", 1), ("other", 2), ("page", 2), ("text", 3)]
"""Prefix and prompt of each row."""


@pytest.fixture(scope="module")
def model(small: Path) -> Any:
    return load_base(small, quantize=False, dtype=torch.float32)[0]


@pytest.fixture(scope="module")
def prefixes(model: Any) -> dict[str, Any]:
    def made(seed: int) -> Any:
        crops = torch.randint(
            0, 256, (1, 3, 336, 336), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
        )
        return compute_prefix(model, [1, 8, *[0] * 313], {"crops": crops, "grids": [(1, 1)]})

    return {"text": None, "page": made(1), "other": made(2)}


def row(prefixes: dict[str, Any], kind: str, prompt: int, settings: Settings | None = None, seed: int = 0) -> Row:
    prefix = prefixes[kind]
    ids = PROMPTS[prompt] if prefix is None else [1, 8, *[0] * 313, *PROMPTS[prompt]]
    return Row(ids, prefix, Sampler(settings or Settings(), seed))


def alone(model: Any, one: Row) -> list[int]:
    made = generation.generate(model, [one.prompt], [one.prefix], stops=[2], pad_id=2, max_new_tokens=TOKENS)
    return made[0]


def test_rows_join_and_leave_without_changing_each_other(model: Any, prefixes: dict[str, Any]) -> None:
    rows = [row(prefixes, *one) for one in ROWS]
    batch = RunningBatch(model, 2)
    batch.join(rows[:2])
    batch.step()
    batch.step()
    batch.join(rows[2:5])
    batch.step()
    batch.leave([rows[1], rows[2]])
    batch.join(rows[5:])
    assert len({id(one.prefix) for one in batch.rows}) == 3
    while any(len(one.ids) < TOKENS for one in batch.rows):
        batch.step()
    assert [len(one.ids) for one in (rows[1], rows[2])] == [4, 2]
    for one in rows:
        expected = alone(model, one)
        assert one.ids[:TOKENS] == expected[: len(one.ids)]
    batch.leave(list(batch.rows))
    assert batch.rows == []


def test_a_seed_gives_the_same_answer_in_any_batch(model: Any, prefixes: dict[str, Any]) -> None:
    settings = Settings(do_sample=True, temperature=1.3, top_k=20, top_p=0.9)
    made = []
    for company in (0, 3):
        rows = [row(prefixes, "text", 0, settings, seed=5), *(row(prefixes, *one) for one in ROWS[:company])]
        batch = RunningBatch(model, 2)
        batch.join(rows)
        for _ in range(TOKENS - 1):
            batch.step()
        made.append(rows[0].ids)
    assert made[0] == made[1]
    assert made[0] != alone(model, row(prefixes, "text", 0))
