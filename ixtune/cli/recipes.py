"""`ixtune recipes`: the recipes that ixtune brings along."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ixtune.base import shipped
from ixtune.errors import UsageError

app = typer.Typer(help="List and show the recipes that ixtune brings along.", no_args_is_help=True)

_FACTS = ("purpose", "gpu", "status")


@app.command("ls")
def ls() -> None:
    """List the recipes: what for, on which GPU, and whether measured."""
    from ixtune.cli.console import console, table

    rows = []
    for path in _recipes().values():
        facts = _facts(path)
        rows.append([path.stem, *(facts.get(fact, "") for fact in _FACTS)])
    console().print(table(None, ("name", *_FACTS), rows))


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="Name of a recipe, as `ixtune recipes ls` gives it.")],
) -> None:
    """Print a recipe, for a file of your own: ixtune recipes show NAME > mine.yaml."""
    recipes = _recipes()
    path = recipes.get(name.removesuffix(".yaml"))
    if path is None:
        raise UsageError(
            "there is no such recipe",
            where=name,
            mend=f"choose one of {', '.join(recipes) or 'none: install again'}",
        )
    typer.echo(path.read_text(encoding="utf-8"), nl=False)


def _recipes() -> dict[str, Path]:
    """The recipe files by name."""
    return {path.stem: path for path in sorted(shipped("recipes").glob("*.yaml"))}


def _facts(path: Path) -> dict[str, str]:
    """The `# fact: text` lines of the comment block at the head of a recipe."""
    facts = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        fact, colon, text = line.lstrip("# ").partition(":")
        if colon and fact in _FACTS:
            facts[fact] = text.strip()
    return facts
