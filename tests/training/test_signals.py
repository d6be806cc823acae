"""Send twenty signals of each kind, including SIGKILL, at random moments, to runs of one and two processes.

The records share a prefix. The result is that of a run that was never interrupted.
"""

from __future__ import annotations

import csv
import datetime
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import forked
import pytest
from safetensors.torch import load_file
from text_run import lines_of, prepare_texts, text_recipe

from ixtune.training.processes import launch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

RESULTS = Path(__file__).parents[1] / "bench" / "results" / "signals.csv"
KINDS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP", "SIGKILL")
SIGNALS = 20
SEED = 19
# where a signal is sent: the function that is at work then
MOMENTS = {
    "loading": ("ixtune.training.run", "build"),
    "warm-up": ("ixtune.training.callbacks", "rehearse"),
    "step": ("ixtune.training.trainer", "AdapterTrainer.forward_backward"),
    "validation": ("ixtune.training.measurements", "mean_loss"),
    "scores": ("ixtune.training.monitoring.scoring", "measure"),
    "samples": ("ixtune.training.monitoring.samples", "take"),
    "save": ("ixtune.training.trainer", "AdapterTrainer._write_checkpoint"),
}
# a run that is stopped makes at most three steps, so that twenty of them stay below the last one
CHANGES = (
    "training.max_steps=40", "training.log_every=3", "training.evaluate_every=2", "training.save_every=3",
    "training.scores=[exact_match]", "training.sample_every=3", "training.sample_records=1",
    "training.gradient_accumulation=2", "training.pack_tokens=500", "resume=auto",
)  # fmt: skip


def send_at(moment: str, call: int, delay_s: float, number: int) -> None:
    """Send a signal to this process `delay_s` after the `call`-th call of the moment's function starts."""
    import importlib

    module, _, path = MOMENTS[moment][0], None, MOMENTS[moment][1]
    owner: Any = importlib.import_module(module)
    *classes, name = path.split(".")
    for one in classes:
        owner = getattr(owner, one)
    plain, calls = getattr(owner, name), iter(range(1, 10**9))

    def counted(*given: Any, **named: Any) -> Any:
        if next(calls) == call:
            timer = threading.Timer(delay_s, os.kill, (os.getpid(), number))
            timer.daemon = True
            timer.start()
        return plain(*given, **named)

    setattr(owner, name, counted)


def train(recipe: Path, log: Path, processes: int, sent: tuple[Any, ...] = (), target: int = 0) -> list[int]:
    """Run `ixtune train` in several processes, send one a signal, and return the exit codes."""
    port = launch._free_port()
    started = []
    for rank in range(processes):
        variables = {"HF_HUB_OFFLINE": "1"}
        if processes > 1:
            variables |= forked.one_of(processes, rank, port)
        before = send_at if sent and rank == target else None
        started.append(
            forked.start(["train", recipe, *CHANGES, "--no-report"], log, variables, before, sent if before else ())
        )
    return forked.wait(started, log)


def result(run: Path) -> dict[str, Any]:
    lines = [line for line in lines_of(run / "metrics.jsonl") if "event" not in line]
    numbers = ("step", "loss", "grad_norm", "learning_rate", "tokens", "validation_loss", "validation_exact_match")
    return {
        "weights": {k: v.numpy().tobytes() for k, v in load_file(run / "adapter/adapter_model.safetensors").items()},
        "lines": sorted(([line.get(name) for name in numbers] for line in lines), key=str),
        "samples": lines_of(run / "samples.jsonl"),
        "best": (run / "best.json").read_text(),
    }


def newest(run: Path) -> int:
    return max((int(path.name.split("-")[1]) for path in run.glob("checkpoint-*")), default=0)


def write_rows(rows: Sequence[dict[str, Any]]) -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    stamp = {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "commit": commit.stdout.strip()}
    fresh = not RESULTS.exists()
    with RESULTS.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*stamp, *rows[0]])
        if fresh:
            writer.writeheader()
        writer.writerows({**stamp, **row} for row in rows)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("texts")
    system = "Add both numbers. " * 16  # a prefix that all records of a pack share
    train_set = prepare_texts(folder / "train", count=24, system=system)
    return train_set, prepare_texts(folder / "validation", count=2, first=50, system=system)


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def straight(
    request: pytest.FixtureRequest, sets: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Path]:
    """Return the number of processes, and the folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("straight")
    text_recipe(folder, sets[0], f"data.validation={sets[1]}")
    (folder / "recipe.yaml").write_text(_with_validation(folder, sets[1]))
    assert train(folder / "recipe.yaml", folder / "log", request.param) == [0] * request.param, (
        folder / "log"
    ).read_text()
    last = [line for line in lines_of(folder / "run" / "metrics.jsonl") if "computed_tokens" in line][-1]
    assert last["computed_tokens"] < last["tokens"]
    return request.param, folder / "run"


def _with_validation(folder: Path, validation: Path) -> str:
    text = (folder / "recipe.yaml").read_text()
    return text.replace("adapter:\n", f"  validation: {validation}\nadapter:\n")


@pytest.mark.parametrize("kind", KINDS)
def test_twenty_signals_at_random_moments_do_not_change_the_result(
    straight: tuple[int, Path], sets: tuple[Path, Path], tmp_path: Path, kind: str
) -> None:
    processes, wanted = straight
    text_recipe(tmp_path, sets[0])
    recipe, run, log = tmp_path / "recipe.yaml", tmp_path / "run", tmp_path / "log"
    recipe.write_text(_with_validation(tmp_path, sets[1]))
    number, chance = getattr(signal, kind), random.Random(f"{SEED} {kind} {processes}")
    moments = [*MOMENTS] * 2 + ["step"] * (SIGNALS - 2 * len(MOMENTS))
    chance.shuffle(moments)
    rows = []
    for moment in moments:
        before, began = newest(run), time.monotonic()
        target = chance.randrange(processes) if moment not in ("samples", "save") else 0
        call = chance.randint(2, 5) if moment == "step" else 1
        codes = train(recipe, log, processes, (moment, call, chance.uniform(0, 0.05), number), target)
        expected = -number if kind == "SIGKILL" else 128 + number
        # while the model loads, the processes have not met yet: the others end because one is gone
        ended = {expected} | ({launch.LOST_PEER} if moment == "loading" or kind == "SIGKILL" else set())
        assert codes[target] == expected, (moment, codes, log.read_text()[-3000:])
        assert set(codes) <= ended, (moment, codes, log.read_text()[-3000:])
        rows.append(
            {
                "processes": processes, "signal": kind, "moment": moment, "sent_to_rank": target,
                "checkpoint_before": before, "checkpoint_after": newest(run),
                "seconds": round(time.monotonic() - began, 1),
            }
        )  # fmt: skip
    assert train(recipe, log, processes) == [0] * processes, log.read_text()[-3000:]
    found, expected = result(run), result(wanted)
    equal = {f"{name}_equal": found[name] == expected[name] for name in expected}
    write_rows([{**row, **equal} for row in rows])
    assert all(equal.values()), equal
