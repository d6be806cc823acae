"""Run the whole job from Python with the functions of `import ixtune`.

    python examples/python-api/run.py --out runs/python-api [key=value …]

runs on the photographs in examples/data/photos-csv with the embedded base. The adapter and the merged model are byte
for byte those of the commands in README.md beside this file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ixtune

HERE = Path(__file__).resolve().parent
PHOTOS = HERE.parent / "data" / "photos-csv"


def main() -> None:
    """Prepare, plan, train, evaluate, report, merge, predict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/python-api"), help="a new folder")
    parser.add_argument("overrides", nargs="*", help="changes to the recipe")
    chosen = parser.parse_args()
    out: Path = chosen.out

    prepared = ixtune.prepare(
        PHOTOS / "questions.csv",
        out / "prepared",
        image_root=PHOTOS / "photos",
        hd_num=1,
        base="nano",
        val_fraction=0.5,
    )
    print(f"{prepared.accepted} of {prepared.read} records accepted, {prepared.rejected} rejected")

    changes = [f"data.train={out}/prepared/train", f"output={out}/run", *chosen.overrides]
    plan = ixtune.plan(HERE / "recipe.yaml", changes)
    print(f"{plan.steps} steps, {plan.memory.total / 2**20:.0f} MiB; fits: {plan.fits}")

    outcome = ixtune.train(HERE / "recipe.yaml", changes)
    if outcome is None or outcome.adapter is None:  # Ctrl-C: the same call with "resume=auto" in `changes` resumes
        raise SystemExit(130)

    found = ixtune.evaluate(
        out / "prepared" / "validation",
        adapters=out / "run",
        scores=["anls"],
        max_new_tokens=16,
        out=out / "evaluation.json",
        report=out / "report",
    )
    for one in found.content["results"]:
        print(f"ANLS of {one['name']}: {one['scores']['anls']['value']:.3f}")

    merged = ixtune.merge(out / "run", out / "merged")
    print(f"{merged.changed} of {merged.tensors} tensors changed; {merged.sampled_rows} rows checked")

    answer = ixtune.predict(
        "What animal is this?", PHOTOS / "photos" / "cat.jpg", base=out / "merged", max_new_tokens=16
    )
    print(f"answer: {answer.text}")


if __name__ == "__main__":
    main()
