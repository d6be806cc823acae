"""Story 1: bar charts of real cars. OpenAI messages, a split by image, relaxed accuracy.

The adapter's 95 % lower bound on charts of later model years must be above the base, the majority answer and the blind
control; otherwise the exit code is 1.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "common"))
import draw
from story import PREPARE, Story, by_kind

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Run the story."""
    story = Story(__doc__, "charts", train=300, held_out=60, unit="charts")
    raw, prepared, run = (story.out / name for name in ("raw", "prepared", "run"))
    learned = draw.draw_set(raw, "train", story.train)
    held_out = draw.draw_set(raw, "test", story.held_out)

    # about a tenth of the charts is validation data for choosing the best step; no image is on both sides
    story.ixtune("prepare", learned, "--out", prepared / "learned", "--hd-num", "2", "--val-fraction", "0.1", *PREPARE)
    story.ixtune("prepare", held_out, "--out", prepared / "test", "--hd-num", "2", *PREPARE)
    story.ixtune(
        "train", HERE / "recipe.yaml", f"data.train={prepared}/learned/train",
        f"data.validation={prepared}/learned/validation", f"output={run}", *story.overrides, "--no-report",
    )  # fmt: skip
    story.ixtune(
        "evaluate", prepared / "test", "--adapter", run, "--score", "relaxed_accuracy", "--score", "exact_match",
        "--out", story.out / "evaluation.json",
    )  # fmt: skip
    story.ixtune("report", run, "--evaluation", story.out / "evaluation.json", "--out", story.out / "report")
    story.ixtune("predict", "Which bar is the longest?", "--image", raw / "test" / "0000.png", "--adapter", run)
    print("\nrelaxed accuracy by kind of question\n" + by_kind(story.evaluation(), "relaxed_accuracy", draw.KINDS))
    story.end("relaxed_accuracy")


if __name__ == "__main__":
    main()
