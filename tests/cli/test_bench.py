"""Test `ixtune bench` from the command line."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from in_process import call
from main_job import ixtune
from test_twin import SMALL

from ixtune.bench import full
from ixtune.bench.mix import MixRecord


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_full_size_without_a_gpu_reports_what_it_needs() -> None:
    done = call("bench", "--full-size", "--questions", "4")
    assert done.returncode == 1
    assert "torch sees none" in done.stderr
    assert "without --full-size the twin is measured on the CPU" in done.stderr


@pytest.mark.parametrize("option", ["--layers", "--questions", "--records", "--rounds"])
def test_options_of_the_twin_and_of_the_full_size_exclude_each_other(option: str) -> None:
    of_full_size = option in ("--layers", "--questions")
    done = call("bench", option, "4", *(() if of_full_size else ("--full-size",)))
    assert done.returncode == 2
    of = ("the 7B's own shapes", "the twin")
    assert f"error: {option} is for {of[not of_full_size]}, not for {of[of_full_size]}" in done.stderr
    assert ("add --full-size" in done.stderr) == of_full_size


def test_several_questions_are_rows_with_and_without_a_shared_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the command as on a GPU, with a small network on the CPU."""
    monkeypatch.setattr(
        full, "measure", partial(full.measure, config=SMALL, pages=[MixRecord(20, (1, 1), 5)], device="cpu")
    )
    done = call("bench", "--full-size", "--questions", "3")
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if " all layers " in line or " none " in line]
    assert [row.split("  ")[0] for row in rows] == ["1", "1", "3", "3", "3, shared page", "3, shared page"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_twin_is_compared_with_every_plain_setup() -> None:
    done = ixtune("bench", "--records", "4", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["ways"]) == 6
    assert all(way["cpu_s_per_1000_tokens"] > 0 and way["peak_mib"] > 0 for way in found["ways"])
    assert [ratio["plain"]["batch"] for ratio in found["ratios"]] == [4, 4, 8, 8]
    assert all(0 < ratio["ideal"] < 1 for ratio in found["ratios"])
