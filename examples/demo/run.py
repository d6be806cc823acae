"""The main job on the embedded base, from pictures to a merged model: `make demo`.

Everything runs through the `ixtune` command line. It passes when the adapter's 95 % lower bound on the held-out sheets
is above both the blind control and the majority answer, and the merged model answers as the adapter does.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))
import sheets

ROOT = Path(__file__).resolve().parents[2]
HD_NUM = "4"
AGREEMENT_NEEDED = 0.95


def ixtune(*arguments: str) -> float:
    """Run one command, show it, and give its seconds; a failing one ends the demo with its exit code."""
    print("\n$ ixtune " + " ".join(arguments), flush=True)
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "ixtune", *arguments], cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    return time.monotonic() - began


def result(report: dict[str, Any], name: str) -> dict[str, Any]:
    """One row of an evaluation."""
    return next(row for row in report["results"] if row["name"] == name)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="everything goes here")
    parser.add_argument("--train-sheets", type=int, default=330)
    parser.add_argument("--test-sheets", type=int, default=120, help="two questions each")
    parser.add_argument("overrides", nargs="*", help="changes to recipes/demo.yaml, such as training.max_steps=2")
    chosen = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    began = time.monotonic()
    out = (ROOT / chosen.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    for former in ("raw", "prepared", "run", "merged"):  # what an earlier demo left, and nothing else
        shutil.rmtree(out / former, ignore_errors=True)
    raw = out / "raw"
    sheets.draw_set(raw, "train", sheets.TRAIN_YEARS, sheets.TRAIN_FONTS, chosen.train_sheets, 14, seed=1)
    sheets.draw_set(raw, "test", sheets.TEST_YEARS, sheets.TEST_FONTS, chosen.test_sheets, 2, seed=1)

    seconds: dict[str, float] = {"draw": time.monotonic() - began}
    prepare = ("--hd-num", HD_NUM, "--base", "nano", "--out")
    seconds["prepare"] = sum(
        ixtune("prepare", f"{raw}/{name}.json", *prepare, f"{out}/prepared/{name}")
        for name in ("train", "test", "test-own-form")
    )
    run, merged = out / "run", out / "merged"
    seconds["train"] = ixtune(
        "train", "recipes/demo.yaml", f"data.train={out}/prepared/train", f"output={run}", *chosen.overrides
    )
    seconds["evaluate"] = ixtune(
        "evaluate", f"{out}/prepared/test", "--adapter", str(run), "--out", f"{out}/evaluation.json"
    )
    seconds["base in its own form"] = ixtune(
        "evaluate", f"{out}/prepared/test-own-form", "--base", "nano", "--quantize", "nf4", "--no-controls",
        "--out", f"{out}/own-form.json",
    )  # fmt: skip
    seconds["merge"] = ixtune("merge", str(run), "--onto", "nf4", "--out", str(merged))
    seconds["evaluate merged"] = ixtune(
        "evaluate", f"{out}/prepared/test", "--base", str(merged), "--no-controls", "--out", f"{out}/merged.json"
    )

    report = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    own = json.loads((out / "own-form.json").read_text(encoding="utf-8"))
    of_merged = json.loads((out / "merged.json").read_text(encoding="utf-8"))
    pairs = list(zip(report["answers"], of_merged["answers"], strict=True))
    agreement = sum(a["adapter"] == m["base"] for a, m in pairs) / len(pairs)
    rows = [
        ("base, asked as in training", result(report, "base")),
        ("base, asked in its own form", result(own, "base")),
        ("majority answer", result(report, "majority answer")),
        ("adapter, pictures swapped", result(report, "adapter, pictures swapped")),
        ("adapter", result(report, "adapter")),
        ("merged model", result(of_merged, "base")),
    ]
    table = Table(title=f"Exact match on {report['records']} held-out questions (unseen year, unseen fonts)")
    for column in ("answers of", "exact match", "95 % interval", "loss"):
        table.add_column(column)
    for name, row in rows:
        loss = "" if row["loss"] is None else f"{row['loss']:.3f}"
        table.add_row(name, f"{row['exact_match']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}", loss)
    console = Console()
    console.print("\n", table)
    total = time.monotonic() - began
    peak_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    console.print(f"merged = adapter on {agreement:.1%} of the answers")
    console.print(
        f"{total:.0f} s in all, peak {peak_mib:.0f} MiB: " + ", ".join(f"{k} {v:.0f} s" for k, v in seconds.items())
    )
    console.print(
        f"pictures {raw}\nprepared {out}/prepared\nadapter  {run}/adapter\nmerged   {merged}\nscores   {out}/*.json"
    )
    floor = max(
        result(report, "majority answer")["exact_match"], result(report, "adapter, pictures swapped")["exact_match"]
    )
    passed = result(report, "adapter")["low"] > floor and agreement >= AGREEMENT_NEEDED
    console.print(
        f"[bold]{'passed' if passed else 'FAILED'}[/bold]: adapter at least {result(report, 'adapter')['low']:.3f}, "
        f"controls at most {floor:.3f}"
    )
    raise SystemExit(0 if passed else 1)


if __name__ == "__main__":
    main()
