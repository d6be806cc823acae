"""The whole job by library functions: what the command line does, it does by these calls.

    python examples/python-api/run.py --out runs/python-api [key=value …]

runs on the photographs in examples/data/photos-csv with the embedded base. The adapter and the merged model are byte
for byte those of the commands in README.md beside this file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from ixtune.base import resolve, resolve_tokenizer
from ixtune.data.prepare import prepare
from ixtune.data.prepared.manifest import Options
from ixtune.data.sources.source import Source
from ixtune.evaluation import evaluate as evaluation
from ixtune.evaluation.contenders import contenders
from ixtune.evaluation.predict import predict_one
from ixtune.evaluation.session import Loaded
from ixtune.evaluation.settings import Settings
from ixtune.files import atomic_write_json
from ixtune.merging.merge import merge
from ixtune.planning.plan import make_plan
from ixtune.planning.plan_inputs import open_for_plan
from ixtune.recipe import recipe as recipes
from ixtune.report import report
from ixtune.training.run import train

HERE = Path(__file__).resolve().parent
PHOTOS = HERE.parent / "data" / "photos-csv"


def main() -> None:
    """Prepare, plan, train, evaluate, report, merge, predict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/python-api"), help="a new folder")
    parser.add_argument("overrides", nargs="*", help="changes to the recipe")
    chosen = parser.parse_args()
    out: Path = chosen.out
    console = Console()

    # ixtune prepare questions.csv --image-root photos --out prepared --hd-num 1 --base nano --val-fraction 0.5
    prepared = prepare(
        [Source(path=str(PHOTOS / "questions.csv"), image_root=PHOTOS / "photos")],
        out / "prepared",
        base=resolve_tokenizer("nano"),
        options=Options(hd_num=1, val_fraction=0.5),
    )
    console.print(f"{prepared.accepted} of {prepared.read} records accepted, {prepared.rejected} rejected")

    # ixtune plan recipe.yaml data.train=… output=…
    settings = (f"data.train={out}/prepared/train", f"output={out}/run", *chosen.overrides)
    recipe = recipes.load(HERE / "recipe.yaml", settings)
    sizes, records, machine, _ = open_for_plan(recipe)
    plan = make_plan(recipe, sizes, records, machine)
    console.print(f"{plan.steps} steps, {plan.memory.total / 2**20:.0f} MiB; fits: {plan.fits}")

    # ixtune train recipe.yaml data.train=… output=…
    outcome = train(recipe, console)
    if outcome is None or outcome.adapter is None:  # Ctrl-C: the same call with resume="auto" goes on
        raise SystemExit(130)

    # ixtune evaluate prepared/validation --adapter run --score anls --max-new-tokens 16 --out evaluation.json
    models = contenders(None, [str(out / "run")], ())
    asked = evaluation.Source(path=out / "prepared" / "validation")
    found = evaluation.evaluate(asked, models, evaluation.Options(scores=("anls",), max_new_tokens=16))
    atomic_write_json(out / "evaluation.json", found.content)

    # ixtune report run --evaluation evaluation.json --out report
    for sentence in report([out / "run"], out / "report", [out / "evaluation.json"]).verdicts:
        console.print(sentence)

    # ixtune merge run --out merged
    merged = merge(out / "run", resolve("nano"), out / "merged")
    console.print(f"{merged.changed} of {merged.tensors} tensors changed; {merged.sampled_rows} rows checked")

    # ixtune predict "How many chairs are there?" --image cat.jpg --base merged
    model = Loaded(str(out / "merged"), None, None)
    answer = predict_one(
        model, "What animal is this?", [PHOTOS / "photos" / "cat.jpg"], model.view(None), Settings(max_new_tokens=16)
    )
    console.print(f"answer: {answer.text}")


if __name__ == "__main__":
    main()
