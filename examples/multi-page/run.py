"""Story 3: search a three-page directory of real airports. Several images in a record, hd_num by record, ANLS.

The adapter's 95 % lower bound on directories of other states must be above the base, the majority answer and the
blind control; otherwise the exit code is 1.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "common"))
import draw
from story import PREPARE, Story, by_kind

HERE = Path(__file__).resolve().parent
VALIDATION_SHARE = 12  # training directories for each one of validation


def main() -> None:
    """Run the story."""
    story = Story(__doc__, "multi-page", train=120, held_out=40, unit="directories")
    raw, prepared, run = (story.out / name for name in ("raw", "prepared", "run"))
    counts = {"train": story.train, "validation": -(-story.train // VALIDATION_SHARE), "test": story.held_out}
    for name, directories in counts.items():
        # each record has its own hd_num, which takes precedence over --hd-num
        story.ixtune(
            "prepare", draw.draw_set(raw, name, directories), "--out", prepared / name, "--hd-num", "1", *PREPARE
        )
    recipe = (
        HERE / "recipe.yaml", f"data.train={prepared}/train", f"data.validation={prepared}/validation",
        f"output={run}", *story.overrides,
    )  # fmt: skip
    story.ixtune("plan", *recipe)
    story.ixtune("train", *recipe, "--no-report")
    story.ixtune(
        "evaluate", prepared / "test", "--adapter", run, "--score", "anls", "--score", "exact_match",
        "--out", story.out / "evaluation.json",
    )  # fmt: skip
    story.ixtune("report", run, "--evaluation", story.out / "evaluation.json", "--out", story.out / "report")
    story.ixtune("export", run, "--profile", "transformers", "--out", story.out / "exported")
    print("\nANLS by kind of question\n" + by_kind(story.evaluation(), "anls", draw.KINDS))
    story.end("anls")


if __name__ == "__main__":
    main()
