"""Test `ixtune bench` from the command line."""

from __future__ import annotations

import json

import pytest
import torch
from in_process import call
from main_job import ixtune


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_full_size_without_a_gpu_reports_what_it_needs() -> None:
    done = call("bench", "--full-size", "--questions", "4")
    assert done.returncode == 1
    assert "torch sees none" in done.stderr
    assert "without --full-size the twin is measured on the CPU" in done.stderr


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
