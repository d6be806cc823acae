"""What the verbs share: a console, tables, a progress bar, and silence from the libraries below."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from ixtune.errors import IxtuneError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# a pipe has no width: wide enough that no cell is folded, because somebody will grep it
_PIPE_COLUMNS = 400


def console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A rich console on stdout, or on stderr; lines are folded on a terminal only."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False, quiet=quiet)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, quiet=quiet, width=_PIPE_COLUMNS)


def table(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A rich table of plain texts: square brackets in a cell are no markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*map(Text, row))
    return made


@contextmanager
def progress(description: str) -> Iterator[Callable[..., None]]:
    """Show on a terminal (stderr) how much is done.

    Yields the function that is told how much more was done, and how much it will be in all once that is known.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    screen = console(stderr=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task(description, total=None)
        yield lambda count, total=None: bar.update(task, advance=count, total=total)


def print_error(error: IxtuneError) -> None:
    """What is wrong and where, the findings, and how to mend it, on stderr."""
    typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
    for note in error.notes:
        typer.echo(f"  {note}", err=True)
    typer.echo(f"mend:  {error.mend}", err=True)


def quiet_libraries() -> None:
    """Keep the libraries' notices from between our lines; to be called before they are imported."""
    import logging
    import os
    import warnings

    # peft 0.21 reads a property that transformers 5.23 has renamed; it still works
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # warns at every fork of a data loader otherwise
    # names the optional package `kernels` at import, which would ask the hub (TRAPS of bitsandbytes 0.50)
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
