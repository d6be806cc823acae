"""Story 2: read order forms in real handwriting as JSON. WebDataset shards, field accuracy, a merged model.

The adapter's 95 % lower bound on forms in unseen handwriting must be above the base, the majority answer and the blind
control; otherwise the exit code is 1.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "common"))
import draw
from story import PREPARE, Story

HERE = Path(__file__).resolve().parent
VALIDATION_SHARE = 12  # training forms for each one of validation


def main() -> None:
    """Run the story."""
    story = Story(__doc__, "handwritten-forms", train=600, held_out=100, unit="forms")
    raw, prepared, run, merged = (story.out / name for name in ("raw", "prepared", "run", "merged"))
    counts = {"train": story.train, "validation": -(-story.train // VALIDATION_SHARE), "test": story.held_out}
    for name, forms in counts.items():
        # prepare copies the images out of the tar
        story.ixtune("prepare", draw.draw_set(raw, name, forms), "--out", prepared / name, "--hd-num", "1", *PREPARE)
    story.ixtune(
        "train", HERE / "recipe.yaml", f"data.train={prepared}/train", f"data.validation={prepared}/validation",
        f"output={run}", *story.overrides, "--no-report",
    )  # fmt: skip
    # for use in a program: one checkpoint without an adapter, and a file of answers
    story.ixtune("merge", run, "--out", merged)
    story.ixtune(
        "evaluate", prepared / "test", "--adapter", run, "--model", merged, "--score", "field_accuracy",
        "--score", "exact_match", "--out", story.out / "evaluation.json",
    )  # fmt: skip
    story.ixtune("report", run, "--evaluation", story.out / "evaluation.json", "--out", story.out / "report")
    story.ixtune("predict", "--from", prepared / "test", "--base", merged, "--out", story.out / "answers.jsonl")
    answers = [json.loads(line) for line in (story.out / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    parsed = sum(is_form(line["answer"]) for line in answers)
    print(f"\n{parsed} of {len(answers)} answers are JSON with the form's fields")
    story.end("field_accuracy")


def is_form(answer: str) -> bool:
    """Return whether an answer is JSON with exactly the fields of the form."""
    try:
        found = json.loads(answer)
    except ValueError:
        return False
    return isinstance(found, dict) and sorted(found) == sorted(name.lower() for name in draw.FIELDS)


if __name__ == "__main__":
    main()
