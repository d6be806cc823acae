"""`ixtune clean`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    run: Annotated[Path, typer.Argument(help="A run folder of `ixtune train`.")],
    everything: Annotated[
        bool,
        typer.Option("--all", help="Include the last checkpoint of a finished run, which can then not be extended."),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove the listed files and folders. Default: list them only.")
    ] = False,
) -> None:
    """List files that a run no longer needs, and remove them with --yes: old and damaged checkpoints, leftovers.

    The adapter, metrics, samples and report are always kept.

    Example: ixtune clean runs/demo --yes
    """
    from ixtune.files import readable_size
    from ixtune.training.state import cleaning

    found = cleaning.unneeded(run, last_too=everything)
    for entry in found:
        typer.echo(f"{readable_size(entry.bytes):>12}  {entry.path}  ({entry.why})")
    total = readable_size(sum(entry.bytes for entry in found))
    if not found:
        typer.echo("nothing to remove")
    elif yes:
        cleaning.remove(found)
        typer.echo(f"removed  {total}")
    else:
        typer.echo(f"total    {total}; nothing was removed. Pass --yes to remove the files")
