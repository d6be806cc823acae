"""Run a command in several processes: started here (`--processes`), by torchrun, or by accelerate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer

_OPTION = "--processes"
ProcessesOption = Annotated[
    int, typer.Option(_OPTION, min=1, help="Number of processes on this machine, one per GPU, that share the work.")
]


def launch_several(context: typer.Context, processes: int) -> None:
    """Rerun this command in several processes and exit with their code; return if one process is requested.

    Raises:
        typer.Exit: The processes have ended.
        UsageError: This process is itself one of several.
    """
    if processes > 1:
        from ixtune.training.processes import launch

        raise typer.Exit(launch.launch(processes, _without_option(context.find_root().obj["arguments"])))


def is_first() -> bool:
    """Return whether this process writes and prints; one of several does."""
    from ixtune.training.processes import launch

    return launch.rank() == 0


@contextmanager
def joined() -> Iterator[None]:
    """Join the other processes of this command, if there are any, and leave with them."""
    from ixtune.training.processes import parallel

    parallel.join()
    with parallel.lost_peers():
        yield


def _without_option(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of this command without the number of processes."""
    kept, skip = [], False
    for argument in arguments:
        if not (skip or argument == _OPTION or argument.startswith(f"{_OPTION}=")):
            kept.append(argument)
        skip = argument == _OPTION and not skip
    return kept
