"""Run the whole job on the embedded base, from images to a merged model and a report: `make demo`.

Everything runs through the `ixtune` command line. It passes when the adapter's 95 % lower bound on the held-out sheets
is above both the blind control and the majority answer, and the merged model answers as the adapter does.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))
import sheets
from paper import TEST_FONTS, TRAIN_FONTS
from story import claim

ROOT = Path(__file__).resolve().parents[2]
HD_NUM = "1"
AGREEMENT_NEEDED = 0.95
BLIND = "adapter, images swapped"
PROCESSES = ("--processes", str(min(2, os.cpu_count() or 1)))  # more give the same answers


def ixtune(*arguments: str) -> float:
    """Print and run an ixtune command; return its seconds, or exit with its exit code if it fails."""
    print("\n$ ixtune " + " ".join(arguments), flush=True)
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "ixtune", *arguments], cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    return time.monotonic() - began


def result(report: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the row of an evaluation with this name."""
    return next(row for row in report["results"] if row["name"] == name)


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="everything goes here")
    parser.add_argument("--train-sheets", type=int, default=220, help="five questions each")
    parser.add_argument("--test-sheets", type=int, default=100, help="two questions each")
    parser.add_argument("overrides", nargs="*", help="changes to recipes/demo.yaml, such as training.max_steps=2")
    chosen = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    began = time.monotonic()
    out = (ROOT / chosen.out).resolve()
    claim(out, ("raw", "prepared", "run", "merged", "report"))
    raw = out / "raw"
    sheets.draw_set(raw, "train", sheets.TRAIN_YEARS, TRAIN_FONTS, chosen.train_sheets, 5, seed=1)
    sheets.draw_set(raw, "test", sheets.TEST_YEARS, TEST_FONTS, chosen.test_sheets, 2, seed=1)

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
    seconds["merge"] = ixtune("merge", str(run), "--onto", "nf4", "--out", str(merged))
    scores = ("--score", "exact_match", "--score", "anls")
    seconds["evaluate"] = ixtune(
        "evaluate", f"{out}/prepared/test", "--adapter", str(run), "--model", str(merged), *scores,
        *PROCESSES, "--out", f"{out}/evaluation.json",
    )  # fmt: skip
    seconds["base in its own wording"] = ixtune(
        "evaluate", f"{out}/prepared/test-own-form", "--base", "nano", "--quantize", "nf4", "--no-controls",
        "--no-loss", *scores, *PROCESSES, "--out", f"{out}/own-form.json",
    )  # fmt: skip
    seconds["report"] = ixtune("report", str(run), "--evaluation", f"{out}/evaluation.json", "--out", f"{out}/report")

    report = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    own = json.loads((out / "own-form.json").read_text(encoding="utf-8"))
    said = [row["answers"] for row in report["answers"]]
    agreement = sum(answers["adapter"] == answers["merged"] for answers in said) / len(said)
    rows = [
        ("base, asked in the demo's wording", result(report, "base")),
        ("base, asked in its own wording", result(own, "base")),
        ("majority answer", result(report, "majority answer")),
        ("adapter, images swapped", result(report, BLIND)),
        ("adapter", result(report, "adapter")),
        ("merged model", result(report, "merged")),
    ]
    table = Table(title=f"Exact match on {report['records']} held-out questions (unseen year, unseen fonts)")
    for column in ("answers of", "exact match", "95 % interval", "loss"):
        table.add_column(column)
    for name, row in rows:
        loss = "" if row["loss"] is None else f"{row['loss']:.3f}"
        exact = row["scores"]["exact_match"]
        table.add_row(name, f"{exact['value']:.3f}", f"{exact['low']:.3f} to {exact['high']:.3f}", loss)
    console = Console()
    console.print("\n", table)
    total = time.monotonic() - began
    peak_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    console.print(f"merged = adapter on {agreement:.1%} of the answers")
    console.print(
        f"{total:.0f} s in all, peak {peak_mib:.0f} MiB: " + ", ".join(f"{k} {v:.0f} s" for k, v in seconds.items())
    )
    console.print(
        f"images   {raw}\nprepared {out}/prepared\nadapter  {run}/adapter\nmerged   {merged}\n"
        f"scores   {out}/*.json\nreport   {out}/report/report.html"
    )
    least, controls = (
        result(report, "adapter")["scores"]["exact_match"]["low"],
        [result(report, name)["scores"]["exact_match"]["value"] for name in ("majority answer", BLIND)],
    )
    passed = least > max(controls) and agreement >= AGREEMENT_NEEDED
    console.print(
        f"[bold]{'passed' if passed else 'FAILED'}[/bold]: adapter at least {least:.3f}, "
        f"controls at most {max(controls):.3f}"
    )
    raise SystemExit(0 if passed else 1)


if __name__ == "__main__":
    main()
