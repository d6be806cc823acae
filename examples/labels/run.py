"""Story 4: the labels of one printer, which the base reads in part, and other sheets, which it must not forget.

Two adapters are trained on the labels: `alone`, and `mixed` with weather log sheets, which the base reads well. Both
are scored on held-out labels and held-out sheets, asked in words that the base was trained on. The exit code is 0 if,
by the 95 % lower bound, `mixed` is better than the base and both controls on labels, and better than `alone` on sheets.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "common"))
sys.path.append(str(Path(__file__).resolve().parents[1] / "demo"))
import draw
import sheets
from paper import TEST_FONTS, TRAIN_FONTS
from story import PREPARE, Story

HERE = Path(__file__).resolve().parent
SCORE = "exact_match"
OLD_WEIGHT = "0.5"  # of the old sheets' questions, how many each epoch sees
TRAIN_SHEETS, TEST_SHEETS = 40, 50


def main() -> None:
    """Run the story."""
    story = Story(__doc__, "labels", train=80, held_out=80, unit="labels")
    raw, prepared, alone, mixed = (story.out / name for name in ("raw", "prepared", "alone", "mixed"))
    sources = {"new": draw.draw_set(raw / "new", "train", story.train)}
    sources["new-test"] = draw.draw_set(raw / "new", "test", story.held_out, asked=2)
    # as in the demo, with its held-out year and fonts, but asked in the base's own words
    sheets.draw_set(raw / "old", "train", sheets.TRAIN_YEARS, TRAIN_FONTS, TRAIN_SHEETS, 5, seed=2)
    sheets.draw_set(raw / "old", "test", sheets.TEST_YEARS, TEST_FONTS, TEST_SHEETS, 2, seed=2)
    sources |= {"old": raw / "old" / "train-own-form.json", "old-test": raw / "old" / "test-own-form.json"}
    for name, source in sources.items():
        story.ixtune("prepare", source, "--out", prepared / name, "--hd-num", "1", *PREPARE)

    new, old = prepared / "new", prepared / "old"
    recipe = ("train", HERE / "recipe.yaml")
    story.ixtune(*recipe, f"data.train={new}", f"output={alone}", *story.overrides, "--no-report")
    story.ixtune(
        *recipe, f"data.train=[{new},{old}]", f"data.weights=[1,{OLD_WEIGHT}]", f"output={mixed}", *story.overrides,
        "--no-report",
    )  # fmt: skip
    models = ("--adapter", f"alone={alone}", "--adapter", f"mixed={mixed}", "--score", SCORE, "--score", "anls")
    story.ixtune("evaluate", prepared / "new-test", *models, "--out", story.out / "evaluation.json")
    story.ixtune("evaluate", prepared / "old-test", *models, "--no-controls", "--out", story.out / "old.json")
    story.ixtune("report", alone, mixed, "--evaluation", story.out / "evaluation.json", "--out", story.out / "report")

    on_labels, on_sheets = (
        {row["name"]: row["scores"][SCORE] for row in story.evaluation(name)["results"]}
        for name in ("evaluation", "old")
    )
    floor = max(score["value"] for name, score in on_labels.items() if name not in ("alone", "mixed"))
    gained, kept, forgot = on_labels["mixed"]["low"], on_sheets["mixed"]["low"], on_sheets["alone"]["value"]
    story.close(
        gained > floor and kept > forgot,
        f"mixed on labels at least {gained:.3f}, of base and controls at most {floor:.3f}; "
        f"on sheets at least {kept:.3f}, of alone {forgot:.3f}",
    )


if __name__ == "__main__":
    main()
