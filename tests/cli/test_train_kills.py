"""Kill a run at twenty random places and compare its result with that of an uninterrupted run."""

from __future__ import annotations

import csv
import datetime
import os
import random
import subprocess
import time
from pathlib import Path

import pytest
from main_job import command, counters, environment, ixtune, kill_in_a_save, losses, prepare, write_recipe
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

RESULTS = Path(__file__).parents[1] / "bench" / "results" / "kills.csv"
KILLS = 20
SAVES_AMONG_THEM = 4
SEED = 4


def _tensors(run: Path) -> dict[str, bytes]:
    return {k: v.numpy().tobytes() for k, v in load_file(run / "adapter" / "adapter_model.safetensors").items()}


def _state(run: Path) -> str:
    """Return the name of the newest checkpoint, or `nothing`."""
    names = sorted((p.name for p in run.glob("checkpoint-*")), key=lambda name: int(name.split("-")[1]))
    return names[-1] if names else "nothing"


def _kill_after(arguments: list[str], seconds: float, run: Path) -> str:
    """Kill a command `seconds` after its start, or, if negative, that long after its first step."""
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment()) as started:
        assert started.stdout is not None
        if seconds < 0:  # in the training itself, so long after the first line about a step
            for line in started.stdout:
                if line.startswith("step"):
                    break
        time.sleep(abs(seconds))
        assert started.poll() is None, "the run ended before it could be killed"
        started.kill()
    metrics = run / "metrics.jsonl"
    return f"{len(metrics.read_text().splitlines()) if metrics.exists() else 0} lines of metrics"


def test_twenty_kills_at_random_places_do_not_change_the_result(tmp_path: Path) -> None:
    data = prepare(tmp_path / "data", 12)
    changes = ("training.epochs=20", "training.save_every=3")
    straight = tmp_path / "straight" / "run"
    recipe = write_recipe(tmp_path / "straight" / "recipe.yaml", data, straight)
    assert ixtune("train", recipe, *changes).returncode == 0

    run = tmp_path / "killed" / "run"
    recipe = write_recipe(tmp_path / "killed" / "recipe.yaml", data, run)
    arguments = command("train", recipe, *changes, "resume=auto")
    chance = random.Random(SEED)
    places = ["save"] * SAVES_AMONG_THEM + ["start"] * 3 + ["training"] * (KILLS - SAVES_AMONG_THEM - 3)
    chance.shuffle(places)
    rows = []
    for number, place in enumerate(places, start=1):
        before = _state(run)
        if place == "save":
            detail = f"while {kill_in_a_save(arguments, run)} was written"
        elif place == "start":
            detail = _kill_after(arguments, chance.uniform(0.5, 6), run)
        else:
            detail = _kill_after(arguments, -chance.uniform(0, 3), run)
        rows.append({"kill": number, "place": place, "at": detail, "before": before, "after": _state(run)})
    done = ixtune("train", recipe, *changes, "resume=auto")
    assert done.returncode == 0, done.stderr
    equal = {
        "losses_equal": losses(run) == losses(straight),
        "weights_equal": _tensors(run) == _tensors(straight),
        "counters_equal": counters(run) == counters(straight),
    }
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    stamp = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit.stdout.strip() or "no git",
        "load": f"{os.getloadavg()[0]:.2f}",
        "steps": len(losses(straight)),
    }
    fresh = not RESULTS.exists()
    with RESULTS.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*stamp, *rows[0], *equal])
        if fresh:
            writer.writeheader()
        writer.writerows({**stamp, **row, **equal} for row in rows)
    assert all(equal.values()), equal
