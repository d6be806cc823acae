"""Provide a small set of printed numbers and runs of the real command line for tests of training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

RECIPE = """
base: nano
data:
  train: {data}
adapter:
  rank: 4
  alpha: 8
  dropout: 0.05
training:
  epochs: 2
  pack_tokens: 800
  learning_rate: 1.0e-3
  warmup_ratio: 0
  compute_dtype: fp32
  gradient_checkpointing: false
  log_every: 1
  save_every: 2
output: {output}
"""


# Runs the command line, and waits for the kill in the first fsync at which a pattern matches something in a folder.
_WAITS_IN_A_SYNC = """
import os, sys, time
from pathlib import Path
folder, pattern, *arguments = sys.argv[1:]
plain = os.fsync
def sync(descriptor):
    if any(Path(folder).glob(pattern)):
        os.write(1, b"\\nwaiting for the kill\\n")
        time.sleep(3600)
    plain(descriptor)
os.fsync = sync
from ixtune.cli import main
sys.exit(main(arguments))
"""


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "ixtune", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def ixtune(*arguments: str | Path, typed: str = "") -> subprocess.CompletedProcess[str]:
    options = {"capture_output": True, "text": True, "env": environment(), "check": False}
    return subprocess.run(command(*arguments), input=typed, **options)


def write_records(folder: Path, count: int, multiple: int = 7) -> Path:
    """Write `count` images with a printed number each, and data.json in the official format."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for index in range(count):
        image = Image.new("RGB", (330, 300), "white")
        number = str(100 + multiple * index)
        ImageDraw.Draw(image).text((100, 100), number, font=ImageFont.load_default(60), fill="black")
        image.save(folder / f"{index}.png")
        turns = [{"from": "user", "value": "<ImageHere>Which number?"}, {"from": "assistant", "value": number}]
        records.append({"id": f"r{index}", "image": [f"{index}.png"], "conversations": turns})
    (folder / "data.json").write_text(json.dumps(records), encoding="utf-8")
    return folder / "data.json"


def prepare(folder: Path, count: int, multiple: int = 7) -> Path:
    source = write_records(folder / "raw", count, multiple)
    done = ixtune("prepare", source, "--out", folder / "prepared", "--hd-num", "1", "--base", "nano")
    assert done.returncode == 0, done.stderr
    return folder / "prepared"


def write_recipe(path: Path, data: Path, output: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(RECIPE.format(data=data, output=output), encoding="utf-8")
    return path


def losses(run: Path) -> list[tuple[int, float, float]]:
    """Return (step, loss, gradient norm) of every line of metrics.jsonl."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines if "loss" in line]


def counters(run: Path) -> list[tuple[int, int]]:
    """Return the cumulative (tokens, supervised tokens) of every step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(line["tokens"], line["supervised_tokens"]) for line in lines if "loss" in line]


def kill_in_a_sync(arguments: Sequence[str | Path], folder: Path, pattern: str) -> None:
    """Kill `ixtune ARGUMENTS` at the first fsync at which `pattern` matches something in `folder`.

    The process waits in that fsync for the kill, so the test does not depend on the speed of the machine.
    """
    words = [sys.executable, "-c", _WAITS_IN_A_SYNC, str(folder), pattern, *map(str, arguments)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment()) as started:
        assert started.stdout is not None
        assert "waiting for the kill\n" in started.stdout, "the run ended before it could be killed"
        started.kill()


def kill_in_a_save(arguments: list[str], run: Path) -> str:
    """Kill a training while it writes a checkpoint; return the name of that checkpoint.

    A stopped process writes nothing, so what is seen then is what is left after the kill.
    """
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, env=environment()) as started:
        while True:
            wait_until(started, lambda: any(_half_saved(run)))
            started.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, started.pid, os.WSTOPPED)
            for name in _half_saved(run):
                if not (run / name).exists():
                    started.kill()
                    return name
            started.send_signal(signal.SIGCONT)  # it was done just then: the next save


def wait_until(started: subprocess.Popen[bytes], due: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not due():
        assert started.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)


def _half_saved(run: Path) -> list[str]:
    """Return the checkpoints that have a partial folder, of this process or of a dead one."""
    names = os.listdir(run) if run.exists() else []
    return [name[1:].split(".partial-")[0] for name in names if name.startswith(".checkpoint-") and ".partial-" in name]
