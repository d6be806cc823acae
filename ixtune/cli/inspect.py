"""`ixtune inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

_BAR = 30


def command(
    adapter: Annotated[Path, typer.Argument(help="Adapter folder, or the run folder around it.")],
    as_json: Annotated[bool, typer.Option("--json", help="Every update, for programs.")] = False,
) -> None:
    """Say how an adapter changes its base: norm and effective rank of every update, and which parts moved most.

    The files are checked on the way. Example: ixtune inspect runs/receipts
    """
    from dataclasses import asdict

    from ixtune.adapter.inspect import by_part, inspect_adapter
    from ixtune.cli.console import console, table

    found = inspect_adapter(adapter)
    if as_json:
        typer.echo(json.dumps({**asdict(found), "folder": str(found.folder)}, indent=2))
        return
    largest = max((update.norm for update in found.updates), default=0.0)
    rows = [
        (
            update.name.removesuffix(".weight"),
            str(update.rank),
            f"{update.norm:.3g}",
            f"{update.effective_rank:.1f}",
            "█" * round(_BAR * update.norm / largest) if largest else "",
        )
        for update in found.updates
    ]
    console().print(table(None, ("update of", "rank", "norm", "effective rank", ""), rows))
    for part, norm in by_part(found.updates).items():
        typer.echo(f"{part:<12} {norm:.3g} together")
    for name, shape in found.whole.items():
        typer.echo(f"{name:<28} trained as a whole, {'x'.join(map(str, shape))}")
    if not found.has_effect:
        typer.echo("it changes nothing: every update is zero")
