"""`ixtune recipes`: the recipes that ixtune brings along, and checks of one's own."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ixtune.cli.options import SetOption
from ixtune.cli.verbs import Verbs

app = typer.Typer(
    help="""List, show and copy the recipes that ixtune brings along, and check one's own.

    Example: ixtune recipes cp receipts mine.yaml
    """,
    cls=Verbs,
    no_args_is_help=True,
)


def _names(incomplete: str) -> list[str]:
    """For completion in a shell."""
    from ixtune.recipe.shipped_recipes import shelf

    return [name for name in shelf() if name.startswith(incomplete)]


_Name = Annotated[str, typer.Argument(help="Name of a recipe, as `ixtune recipes ls` gives it.", autocompletion=_names)]


@app.command("ls")
def ls(as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False) -> None:
    """List the recipes: what for, on which GPU, and whether measured.

    Example: ixtune recipes ls
    """
    from ixtune.recipe.shipped_recipes import shelf

    facts = ("name", "purpose", "gpu", "status")
    rows = [{fact: str(getattr(recipe, fact)) for fact in facts} for recipe in shelf().values()]
    if as_json:
        import json

        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    from ixtune.cli.console import console, table

    console().print(table(None, facts, [list(row.values()) for row in rows]))


@app.command("show")
def show(name: _Name) -> None:
    """Print a recipe.

    Example: ixtune recipes show qlora-24gb
    """
    from ixtune.recipe.shipped_recipes import recipe_named

    typer.echo(recipe_named(name).path.read_text(encoding="utf-8"), nl=False)


@app.command("cp")
def cp(
    name: _Name,
    file: Annotated[
        Path | None, typer.Argument(help="New file, or a folder for it. Default: NAME.yaml in this folder.")
    ] = None,
) -> None:
    """Copy a recipe to a file of one's own; a file that is there is never overwritten.

    Example: ixtune recipes cp receipts mine.yaml
    """
    from ixtune.cli.console import ending
    from ixtune.recipe.shipped_recipes import copy

    path = copy(name, file)
    ending([f"written  {path}", f"check    ixtune recipes check {shlex.quote(str(path))}"], path)


@app.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="A recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to it, such as training.seed=1.")] = None,
    changes: SetOption = None,
) -> None:
    """Report all mistakes of a recipe at once, with line and nearest right name; nothing is opened or started.

    The exit code is 2 if there are any.

    Example: ixtune recipes check mine.yaml adapter.rank=32
    """
    from ixtune.recipe import recipe as recipes

    recipes.load(file, [*(overrides or ()), *(changes or ())])
    typer.echo(f"ok       {file}: no mistake found")


@app.command("schema")
def schema() -> None:
    """Print the JSON schema of recipes, by which editors complete and check them.

    With the YAML language server (VS Code, Neovim, Zed and others) save it beside a recipe, and let the recipe begin
    with the line: # yaml-language-server: $schema=recipe.schema.json

    Example: ixtune recipes schema > recipe.schema.json
    """
    import json

    from ixtune.recipe.schema import schema as made

    typer.echo(json.dumps(made(), indent=2, ensure_ascii=False))
