"""Test the speed in a log line: tokens per second of training time, and MFU."""

from __future__ import annotations

import pytest

from ixtune.training.monitoring import metrics
from ixtune.training.monitoring.metrics import Meter
from ixtune.training.state.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the clock by a list, so that a test can set the time."""
    now = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    return now


def test_speed_covers_time_in_steps_and_seconds_cover_all_time(clock: list[float]) -> None:
    progress = Progress(tokens=1000, seconds=50.0)  # from before a resume
    meter = Meter(progress)
    clock[0] += 30  # loading
    meter.start()
    progress.tokens += 400
    clock[0] += 4
    with meter.idle():
        clock[0] += 6  # a validation
    first = meter.measure()
    assert (first["tokens_per_s"], first["tokens"], first["seconds"]) == (100.0, 1400, 60.0)
    progress.tokens += 100
    clock[0] += 2
    assert meter.measure()["tokens_per_s"] == 50.0
    assert progress.seconds == 62.0


def test_mfu_is_a_fraction_of_the_gpu_limit_and_absent_if_unknown(clock: list[float]) -> None:
    progress = Progress()
    meter = Meter(progress, flops_per_s=1000.0)
    progress.flops += 1000.0
    clock[0] += 4
    assert meter.measure()["mfu"] == 0.25
    assert "mfu" not in Meter(progress).measure()
