"""`ixtune recipes`: the shipped recipes, and checks of your own."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ixtune.cli.options import SetOption
from ixtune.cli.verbs import Verbs

app = typer.Typer(
    help="""List, show and copy the shipped recipes, and check your own.

    Example: ixtune recipes cp receipts mine.yaml
    """,
    cls=Verbs,
    no_args_is_help=True,
)


def _names(incomplete: str) -> list[str]:
    """Return the recipe names that start with the given text, for shell completion."""
    from ixtune.recipe.shipped_recipes import shipped_by_name

    return [name for name in shipped_by_name() if name.startswith(incomplete)]


_Name = Annotated[
    str, typer.Argument(help="Name of a shipped recipe; `ixtune recipes ls` lists them.", autocompletion=_names)
]


@app.command("ls", short_help="List the shipped recipes.")
def ls(as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False) -> None:
    """List the shipped recipes with purpose, GPU, and whether they were measured.

    Example: ixtune recipes ls
    """
    from ixtune.recipe.shipped_recipes import shipped_by_name

    facts = ("name", "purpose", "gpu", "status")
    rows = [{fact: str(getattr(recipe, fact)) for fact in facts} for recipe in shipped_by_name().values()]
    if as_json:
        import json

        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    from ixtune.cli.console import console, table

    console().print(table(None, facts, [list(row.values()) for row in rows], ["name"]))


@app.command("show")
def show(name: _Name) -> None:
    """Print a shipped recipe.

    Example: ixtune recipes show qlora-24gb
    """
    from ixtune.recipe.shipped_recipes import recipe_named

    typer.echo(recipe_named(name).path.read_text(encoding="utf-8"), nl=False)


@app.command("cp", short_help="Copy a shipped recipe to a new file.")
def cp(
    name: _Name,
    file: Annotated[
        Path | None, typer.Argument(help="New file, or a folder for it. Default: NAME.yaml in the current folder.")
    ] = None,
) -> None:
    """Copy a shipped recipe to a new file; never overwrites one.

    Example: ixtune recipes cp receipts mine.yaml
    """
    from ixtune.cli.console import ending
    from ixtune.recipe.shipped_recipes import copy

    path = copy(name, file)
    ending([f"written  {path}", f"check    ixtune recipes check {shlex.quote(str(path))}"], path)


@app.command("check", short_help="Report all mistakes in a recipe at once.")
def check(
    file: Annotated[Path, typer.Argument(help="Recipe file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Recipe overrides, e.g. training.seed=1.")] = None,
    changes: SetOption = None,
) -> None:
    """Report all mistakes in a recipe at once, each with its line and the nearest valid key.

    Exits with 2 if there are any. Opens and starts nothing.

    Example: ixtune recipes check mine.yaml adapter.rank=32
    """
    from ixtune.recipe import recipe as recipes

    recipes.load(file, [*(overrides or ()), *(changes or ())])
    typer.echo(f"ok       {file}: no mistakes found")


@app.command("schema", short_help="Print the JSON schema of recipes.")
def schema() -> None:
    """Print the JSON schema of recipes, for completion and checks in editors.

    For the YAML language server (VS Code, Neovim, Zed and others), save it next to a recipe and start the recipe with
    the line: # yaml-language-server: $schema=recipe.schema.json

    Example: ixtune recipes schema > recipe.schema.json
    """
    import json

    from ixtune.recipe.schema import schema as made

    typer.echo(json.dumps(made(), indent=2, ensure_ascii=False))
