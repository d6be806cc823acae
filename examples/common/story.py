"""Shared parts of the worked stories: options, calls of the command line, and the verdict on held-out records."""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PREPARE = ("--base", "nano", "--workers", "1")


def processor_s() -> float:
    """Return the CPU seconds of all commands so far; on a busy machine wall time says little."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def claim(out: Path, former: Sequence[str]) -> None:
    """Create the output folder of an example and delete the results of its last run.

    Raises:
        SystemExit: it holds something, and no example has made it.
    """
    mark = out / ".ixtune-example"
    if out.is_dir() and any(out.iterdir()) and not mark.exists():
        raise SystemExit(f"{out} is not empty, and no example has made it: give another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    mark.touch()
    for name in former:
        shutil.rmtree(out / name, ignore_errors=True)


class Story:
    """A running story: its folder, its options, and the CPU seconds of each command."""

    def __init__(self, description: str, name: str, *, train: int, held_out: int, unit: str) -> None:
        """Parse the command line and empty the folder of an earlier run.

        Args:
            description: For `--help`.
            name: Of its folder under runs/.
            train: How many images (or records) are drawn for training, validation included.
            held_out: How many for the held-out set.
            unit: What `train` and `held_out` count.
        """
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--out", type=Path, default=ROOT / "runs" / name, help="everything goes here")
        parser.add_argument("--train", type=int, default=train, help=f"{unit} to learn from (default {train})")
        parser.add_argument("--held-out", type=int, default=held_out, help=f"held-out {unit} (default {held_out})")
        parser.add_argument("overrides", nargs="*", help="changes to the recipe, such as training.max_steps=2")
        chosen = parser.parse_args()
        self.train: int = chosen.train
        self.held_out: int = chosen.held_out
        self.overrides: list[str] = chosen.overrides
        self.out: Path = chosen.out.resolve()
        self.processor_s: dict[str, float] = {}
        self.began = time.monotonic()
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        claim(self.out, ("raw", "prepared", "run", "alone", "mixed", "merged", "exported", "report"))
        (self.out / "answers.jsonl").unlink(missing_ok=True)

    def ixtune(self, *arguments: str | Path) -> None:
        """Print and run an ixtune command; exit with its exit code if it fails."""
        words = [str(argument) for argument in arguments]
        print("\n$ ixtune " + shlex.join(words), flush=True)
        before = processor_s()
        done = subprocess.run([sys.executable, "-m", "ixtune", *words], cwd=ROOT, check=False)
        if done.returncode:
            raise SystemExit(done.returncode)
        self.processor_s[words[0]] = self.processor_s.get(words[0], 0.0) + processor_s() - before

    def evaluation(self, name: str = "evaluation") -> dict[str, Any]:
        """Return the content of NAME.json, a file that `ixtune evaluate` wrote."""
        found: dict[str, Any] = json.loads((self.out / f"{name}.json").read_text(encoding="utf-8"))
        return found

    def end(self, score: str) -> None:
        """Exit with 0 if the adapter's 95 % lower bound is above the base and both controls, otherwise with 1."""
        rows = self.evaluation()["results"]
        adapter = next(row["scores"][score] for row in rows if row["name"] == "adapter")
        others = {
            row["name"]: row["scores"][score] for row in rows if row["kind"] == "control" or row["name"] == "base"
        }
        best = max(others, key=lambda name: others[name]["value"])
        low, floor = adapter["low"], others[best]["value"]
        self.close(low > floor, f"{score} at least {low:.3f}, of {best} {floor:.3f}")

    def close(self, passed: bool, verdict: str) -> None:
        """Print time, memory and verdict; exit with 0 if the story passed, otherwise with 1."""
        peak_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        spent = ", ".join(f"{verb} {seconds:.0f} s" for verb, seconds in self.processor_s.items())
        print(f"\n{time.monotonic() - self.began:.0f} s in all, peak {peak_mib:.0f} MiB; of a processor: {spent}")
        print(f"{'passed' if passed else 'FAILED'}: {verdict}")
        raise SystemExit(0 if passed else 1)


def by_kind(evaluation: dict[str, Any], score: str, kinds: Iterable[str]) -> str:
    """Return the scores of every model and control by kind of question, taken from the end of each id."""
    names = [row["name"] for row in evaluation["results"]]
    lines = []
    for kind in kinds:
        rows = [row["scores"] for row in evaluation["answers"] if row["id"].endswith(f"-{kind}")]
        means = (f"{name} {sum(row[name][score] for row in rows) / len(rows):.3f}" for name in names)
        lines.append(f"{kind:<8} {len(rows):>4} questions: " + ", ".join(means))
    return "\n".join(lines)
