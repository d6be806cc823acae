"""Measure on a noisy machine: one thread, CPU time, alternating runs, peak memory in separate processes."""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
ROUNDS = 5


def interleaved(one: Callable[[], object], other: Callable[[], object], rounds: int = ROUNDS) -> tuple[float, float]:
    """Return the median CPU seconds of each function, run alternately after one warm-up each."""
    times: tuple[list[float], list[float]] = ([], [])
    one(), other()
    for _ in range(rounds):
        for way, spent in zip((one, other), times, strict=True):
            began = time.process_time()
            way()
            spent.append(time.process_time() - began)
    return statistics.median(times[0]), statistics.median(times[1])


def peak_mib(code: str) -> float:
    """Return how much `code` raises the peak memory of a new process, counted from its line `# measured`.

    VmHWM, because ru_maxrss survives exec and would start from the peak of the process that runs the benchmarks.
    """
    peak = "int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])"
    script = code.replace("# measured", f"_before = {peak}") + f"\nprint({peak} - _before)\n"
    package = str(RESULTS.parents[2])
    environment = {**os.environ, "PYTHONPATH": package}
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, env=environment)
    return int(done.stdout.split()[-1]) / 1024


def record(name: str, figures: dict[str, float]) -> None:
    """Append a row to results/NAME.csv, with the facts needed to reproduce it."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    row = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit or "no git",
        **{key: f"{value:.4g}" for key, value in figures.items()},
        "load": f"{os.getloadavg()[0]:.2f}",
        "python": platform.python_version(),
        "versions": json.dumps({p: importlib.metadata.version(p) for p in ("torch", "transformers", "pillow")}),
        "command": "make bench",
    }
    path = RESULTS / f"{name}.csv"
    RESULTS.mkdir(exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        if fresh:
            writer.writeheader()
        writer.writerow(row)
    print(name, figures)
