"""The training step on the twin, against plain Trainer + PEFT; `ixtune bench` is the same for users."""

from __future__ import annotations

import measuring
import pytest

from ixtune.bench import compare, twin

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]

RECORDS, ROUNDS = 8, 3


def rows(chosen: list[compare.Way], rounds: int) -> list[compare.Figures]:
    """Measure and put one row each into results/train.csv."""
    figures = compare.measure(chosen, records=RECORDS, rounds=rounds, config=twin.CONFIG, rank=twin.RANK, told=print)
    for one in figures:
        way = one.way
        row = {
            "ixtune": float(way.batch is None),
            "batch": float(way.batch or 0),
            "checkpointed": float(way.checkpointed),
            "cpu_s_per_1000_tokens": one.cpu_s_per_1000_tokens,
            "peak_mib": one.peak_mib,
            "records": float(RECORDS),
            "rounds": float(rounds),
        }
        measuring.record("train", row)
    return figures


def test_a_training_step_against_the_plain_way() -> None:
    figures = rows(compare.ways(), ROUNDS)
    for ratio in compare.ratios(figures, records=RECORDS, config=twin.CONFIG, rank=twin.RANK):
        name = f"train_ratio_batch_{ratio.plain.batch}{'_checkpointed' * ratio.plain.checkpointed}"
        measuring.record(name, {"time": ratio.time, "ideal": ratio.ideal, "memory": ratio.memory})
        assert ratio.time <= 1.1 * ratio.ideal
        assert ratio.memory <= 0.40
