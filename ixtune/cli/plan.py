"""`ixtune plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ixtune.cli.options import SetOption, finite


def command(
    recipe: Annotated[Path, typer.Argument(help="A recipe in YAML; `ixtune recipes ls` lists those that ship.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes to the recipe, such as training.pack_tokens=4096.")
    ] = None,
    gpu_gib: Annotated[
        float | None,
        typer.Option(
            "--gpu-gib", callback=finite, min=0.1, help="Memory that a GPU would have, in place of what is found here."
        ),
    ] = None,
    mix: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Plan on 1,000 made-up records in place of data.train: documents, charts, receipts, screenshots, "
            "multi-image or text-mix.",
        ),
    ] = None,
    changes: SetOption = None,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Processes that share the packs of a step.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Tell what a training run will take, before anything is loaded: packs, steps, operations, memory, and if it fits.

    Needs the prepared data (or --mix) and the base's config.json, no weights and no GPU. Where the run does not fit,
    the cheapest changes that make it fit are computed, and the exit code is 1; it is 0 if the run fits or nobody knows.

    Example: ixtune plan recipes/qlora-24gb.yaml data.train=prepared/train --gpu-gib 24

    Example: ixtune plan recipes/receipts.yaml --mix receipts --gpu-gib 16 --set adapter.rank=16
    """
    import json

    from ixtune.cli.console import console
    from ixtune.planning import plan_report
    from ixtune.planning.advice import advise
    from ixtune.planning.plan import make_plan
    from ixtune.planning.plan_inputs import open_for_plan
    from ixtune.recipe import recipe as recipes

    chosen = recipes.load(recipe, [*(overrides or ()), *(changes or ())])
    sizes, records, machine, notes = open_for_plan(chosen, gpu_gib, mix)
    made = make_plan(chosen, sizes, records, machine, processes=processes)
    advice = advise(made, records)
    if as_json:
        typer.echo(json.dumps(plan_report.as_json(made, advice), indent=2))
    else:
        text = "\n".join([*notes, *plan_report.lines(made, advice)])
        console().print(text, highlight=False, markup=False)
    if made.fits is False:
        raise typer.Exit(1)
