"""`ixtune train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    recipe: Annotated[Path, typer.Argument(help="A recipe in YAML; `ixtune recipes ls` lists those that ship.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes to the recipe, such as training.seed=1 adapter.rank=16.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the recipe's output folder.")] = False,
) -> None:
    """Train an adapter as a recipe says: QLoRA on the decoder, and the projector.

    Example: ixtune train recipes/demo.yaml output=runs/demo training.max_steps=20
    """
    from ixtune import recipe as recipes
    from ixtune.cli.console import console, quiet_libraries

    chosen = recipes.load(recipe, overrides or ())
    quiet_libraries()
    from ixtune.training.run import train

    out = console()
    outcome = train(chosen, out, resume=resume)
    if outcome.adapter is None:
        out.print(f"stopped  at step {outcome.steps}; checkpoint {outcome.checkpoint}", highlight=False)
        out.print(f"resume   ixtune train {recipe} {' '.join(overrides or ())} --resume", highlight=False)
        raise typer.Exit(130)
    out.print(f"done     {outcome.steps} steps; adapter in {outcome.adapter}", highlight=False)
