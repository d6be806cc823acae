"""`ixtune plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ixtune.cli.options import SetOption, finite


def command(
    recipe: Annotated[Path, typer.Argument(help="Recipe file (YAML); `ixtune recipes ls` lists the shipped ones.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Recipe overrides, e.g. training.pack_tokens=4096.")
    ] = None,
    gpu_gib: Annotated[
        float | None,
        typer.Option(
            "--gpu-gib", callback=finite, min=0.1, help="GPU memory in GiB to plan for. Default: this machine's GPU."
        ),
    ] = None,
    mix: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Plan on 1,000 made-up records instead of data.train: documents, charts, receipts, screenshots, "
            "multi-image or text-mix.",
        ),
    ] = None,
    changes: SetOption = None,
    processes: Annotated[
        int, typer.Option("--processes", min=1, help="Number of processes that share the packs of a step.")
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Estimate memory, steps and time of a training run before loading the model.

    Needs the prepared data (or --mix) and the base's config.json, but no weights and no GPU. If the run does not fit,
    prints the cheapest changes that make it fit and exits with 1. Exits with 0 if it fits or the memory is unknown.

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
