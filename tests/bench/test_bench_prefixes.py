"""Measure how long it takes to find the shared prefixes of a large prepared set."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import measuring
import numpy as np
import pyarrow as pa
import pytest

from ixtune import platforms
from ixtune.data.shared_prefixes import find_prefixes

pytestmark = pytest.mark.bench

RECORDS, QUESTIONS, TOKENS = 1_000_000, 4, 60
LAYOUT = {
    **{"width": 2016, "height": 3024, "hd_num": 25, "resized_width": 1344, "resized_height": 2016},
    **{"pad_left": 0, "pad_top": 0, "rows": 6, "cols": 4, "tokens": 3697},
}


def lists(flat: Any, length: int) -> pa.ListArray:
    """Return an array of lists of one length."""
    return pa.ListArray.from_arrays(pa.array(np.arange(0, len(flat) + 1, length, dtype=np.int32)), flat)


def columns() -> pa.Table:
    """Return the columns of a prepared set with four questions about each page, in random order."""
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 92_000, (RECORDS, TOKENS), dtype=np.int32)
    ids[:, :4] = (1, 7, 4, 3)
    page = pa.array(np.arange(RECORDS) // QUESTIONS)
    fields = {
        "root": pa.array(np.ones(RECORDS, dtype=np.int32)),
        "path": pa.array([f"p{number}.jpg" for number in range(RECORDS // QUESTIONS)]).take(page),
        "content": pa.array([f"{number:032x}" for number in range(RECORDS // QUESTIONS)]).take(page),
        "bytes": pa.array(np.full(RECORDS, 10**6)),
        "name": pa.array([""] * RECORDS),
        "document": pa.array([""] * RECORDS),
        "upscale": pa.array(np.ones(RECORDS, dtype=bool)),
        **{name: pa.array(np.full(RECORDS, value, dtype=np.int32)) for name, value in LAYOUT.items()},
    }
    images = pa.StructArray.from_arrays(list(fields.values()), list(fields))
    slots = pa.array(np.full(RECORDS, 4, dtype=np.int32))
    flat = {"token_ids": lists(pa.array(ids.reshape(-1)), TOKENS), "picture_slots": lists(slots, 1)}
    table = pa.table({**flat, "pictures": lists(images, 1)})
    return table.take(pa.array(rng.permutation(RECORDS))).combine_chunks()


def test_groups_of_a_million_records_are_found_in_seconds() -> None:
    opened: Any = SimpleNamespace(
        dataset=SimpleNamespace(data=columns()), files=SimpleNamespace(roots=["/prepared", "/pages"])
    )
    before, began = platforms.peak_memory_bytes(), time.process_time()
    found = find_prefixes([opened], [0] * RECORDS, range(RECORDS))
    spent = time.process_time() - began
    memory = (platforms.peak_memory_bytes() - before) / 2**20
    measuring.record("find_prefixes", {"records": RECORDS, "cpu_s": spent, "peak_mib_above": memory})
    assert len(found.tokens) == RECORDS // QUESTIONS
    assert set(found.tokens) == {LAYOUT["tokens"] + 4}
    assert spent < 120
