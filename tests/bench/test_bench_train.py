"""Benchmark a training step on the twin against plain Trainer + PEFT, as `ixtune bench` does for users."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import measuring
import pytest
from records import entry, write_image, write_source
from text_run import run, text_recipe

from ixtune.base import resolve
from ixtune.bench import compare, twin
from ixtune.data.prepare import prepare
from ixtune.data.prepared.manifest import PrepareOptions
from ixtune.data.sources.source import Source

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]

RECORDS, ROUNDS = 8, 3


def rows(chosen: list[compare.Way], rounds: int) -> list[compare.Figures]:
    """Measure each case and append a row to results/train.csv."""
    figures = compare.measure(chosen, records=RECORDS, rounds=rounds, config=twin.CONFIG, rank=twin.RANK, log=print)
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


@pytest.mark.parametrize(
    ("name", "records", "rounds", "most"),
    [("pages-hd25", 8, 2, 0.30), ("pages-hd55", 4, 2, 0.30), ("docvqa", 39, 1, 0.40), ("mixed", 4, 3, 1.02)],
)
def test_questions_about_one_page_pay_for_the_page_once(name: str, records: int, rounds: int, most: float) -> None:
    """Compare with ixtune without sharing and plain training; with one question per page, sharing costs nothing."""
    chosen = compare.SHARING if name != "mixed" else compare.SHARING[:2]
    figures = compare.measure(
        chosen, records=records, rounds=rounds, config=twin.CONFIG, rank=twin.RANK, name=name, memory=False, log=print
    )
    seconds = [one.cpu_s_per_1000_tokens for one in figures]
    row = {"records": float(records), "rounds": float(rounds), "shared_s_per_1000_record_tokens": seconds[0]}
    row["of_ixtune_without"] = seconds[0] / seconds[1]
    row["of_plain_batch_4"] = seconds[0] / seconds[2] if len(seconds) > 2 else float("nan")
    measuring.record(f"shared_prefixes_{name}", row)
    assert row["of_ixtune_without"] <= most


def test_one_question_per_image_costs_no_more_with_sharing(tmp_path: Path) -> None:
    """Compare whole runs of the nano base, from opening the set to the saved adapter, with sharing on and off."""
    images, rounds = 24, 5
    for number in range(images):
        write_image(tmp_path / "source" / f"{number}.png", 300 + number, 300)
    entries = [entry(f"{at}", f"<ImageHere>Which is {at}?", f"{at}", image=[f"{at}.png"]) for at in range(images)]
    source = Source(path=str(write_source(tmp_path / "source", entries)))
    prepare([source], tmp_path / "set", base=resolve("nano"), options=PrepareOptions(hd_num=1))
    numbers = count()

    def trained(share: bool) -> None:
        shared = (f"training.share_prefixes={str(share).lower()}", "training.pack_tokens=1400")
        run(text_recipe(tmp_path / f"run{next(numbers)}", tmp_path / "set", *shared))

    shared_s, separate_s = measuring.interleaved(lambda: trained(True), lambda: trained(False), rounds)
    row = {"images": images, "rounds": rounds, "shared_s": shared_s, "separate_s": separate_s}
    measuring.record("shared_prefixes_single", {**row, "ratio": shared_s / separate_s})
    assert shared_s <= 1.02 * separate_s
