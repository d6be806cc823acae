"""Benchmark `prepare`: records per second against a plain `datasets` loop, memory, and a second worker."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import measuring
import numpy as np
import pytest
from PIL import Image
from small_tokenizer import train

from ixtune.data.prepare import prepare
from ixtune.data.prepared.manifest import PrepareOptions
from ixtune.data.sources.source import Source
from ixtune.data.text.tokenizer import Tokenizer

pytestmark = pytest.mark.bench

RECORDS = 2000


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("base")).parent


def write(folder: Path, records: int, sides: tuple[int, int]) -> Path:
    """Write JSON Lines records, each with a photo-like JPEG, a question and an answer of usual length."""
    noise = np.random.default_rng(0)
    with open(folder / "data.jsonl", "w", encoding="utf-8") as file:
        for number in range(records):
            pixels = noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize(sides).save(folder / f"{number}.jpg")
            turns = [
                {"from": "user", "value": f"<ImageHere>What is written in line {number} of this receipt, and why?"},
                {"from": "assistant", "value": f"In line {number} stands the total of {number}.50, as it was paid."},
            ]
            file.write(json.dumps({"id": number, "image": [f"{number}.jpg"], "conversations": turns}) + "\n")
    return folder / "data.jsonl"


def test_prepare_json_lines_with_small_images(tmp_path: Path, base: Path) -> None:
    from datasets import Dataset, disable_caching, disable_progress_bars

    disable_progress_bars()
    disable_caching()
    source = write(tmp_path, RECORDS, (256, 192))
    tokenizer = Tokenizer.from_base(base)

    def ours() -> None:
        shutil.rmtree(tmp_path / "ours", ignore_errors=True)
        prepare([Source(path=str(source))], tmp_path / "ours", base=base, options=PrepareOptions(hd_num=16))

    def plain() -> None:
        """Decode for the size, tokenize and save, as a notebook does: no layout, no mask, no checks."""

        def encode(record: dict[str, object]) -> dict[str, object]:
            with Image.open(tmp_path / record["image"][0]) as image:
                width, height = image.convert("RGB").size
            text = "".join(turn["value"] for turn in record["conversations"])
            return {"input_ids": tokenizer.encode(text), "width": width, "height": height}

        shutil.rmtree(tmp_path / "plain", ignore_errors=True)
        with open(source, encoding="utf-8") as file:
            Dataset.from_list([json.loads(line) for line in file]).map(encode).save_to_disk(tmp_path / "plain")

    mine, theirs = measuring.interleaved(ours, plain, rounds=3)
    rates = {"records_per_s": RECORDS / mine, "plain_records_per_s": RECORDS / theirs}
    measuring.record("prepare", rates)
    assert rates["records_per_s"] > 1500


MEMORY = """
import sys
from pathlib import Path
from ixtune.data.prepared.manifest import PrepareOptions
from ixtune.data.prepare import prepare
from ixtune.data.sources.source import Source
import datasets, pyarrow, PIL.Image, sentencepiece
source, out, base = {arguments}
# measured
prepare([Source(path=source)], Path(out), base=Path(base), options=PrepareOptions(hd_num=4))
"""


def test_memory_of_a_million_text_records(tmp_path: Path, base: Path) -> None:
    source = tmp_path / "text.jsonl"
    with open(source, "w", encoding="utf-8") as file:
        for number in range(1_000_000):
            turns = [{"from": "user", "value": f"What is {number}?"}, {"from": "assistant", "value": f"{number}."}]
            file.write(json.dumps({"id": number, "image": [], "conversations": turns}) + "\n")
    arguments = (str(source), str(tmp_path / "out"), str(base))
    began = time.monotonic()
    grown = measuring.peak_mib(MEMORY.format(arguments=arguments))
    measuring.record("prepare_memory", {"records": 1e6, "grown_mib": grown, "wall_s": time.monotonic() - began})
    assert grown < 1024


WORKERS = """
import sys
from pathlib import Path
from ixtune.data.prepared.manifest import PrepareOptions
from ixtune.data.prepare import prepare
from ixtune.data.sources.source import Source
if __name__ == "__main__":
    source, out, base, workers = sys.argv[1:]
    options = PrepareOptions(hd_num=16, verify=True)
    prepare([Source(path=source)], Path(out), base=Path(base), options=options, workers=int(workers))
"""


def test_two_workers_with_verify(tmp_path: Path, base: Path) -> None:
    """Measure wall time of alternating processes; needs two free cores."""
    (tmp_path / "data").mkdir()
    source = write(tmp_path / "data", 1500, (1600, 1200))
    lines = source.read_text(encoding="utf-8").splitlines()
    repeated = [
        json.dumps(json.loads(line) | {"id": f"{again} {n}"}) for again in range(5) for n, line in enumerate(lines)
    ]
    source.write_text("\n".join(repeated), encoding="utf-8")
    (tmp_path / "run.py").write_text(WORKERS)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    times: dict[int, list[float]] = {1: [], 2: []}
    for round_number in range(2):
        for workers in (1, 2):
            out = tmp_path / f"{round_number}-{workers}"
            command = [sys.executable, str(tmp_path / "run.py"), str(source), str(out), str(base), str(workers)]
            began = time.monotonic()
            subprocess.run(command, check=True, env=environment)
            times[workers].append(time.monotonic() - began)
    one, two = (min(times[workers]) for workers in (1, 2))
    measuring.record("prepare_workers", {"one_s": one, "two_s": two, "speedup": one / two})
    assert one / two > 1.6
