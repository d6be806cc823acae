"""What the verbs share: a console, tables, a progress bar, and silence from the libraries below."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from ixtune.errors import IxtuneError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# a pipe has no width: wide enough that no cell is folded, because somebody will grep it
_PIPE_COLUMNS = 400
_asked = {"quiet": False}


def console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A rich console on stdout, or on stderr; lines are folded on a terminal only."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False, quiet=quiet)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, quiet=quiet, width=_PIPE_COLUMNS)


def be_quiet(quiet: bool) -> None:
    """Whether what follows is asked for its result alone (`--quiet`)."""
    _asked["quiet"] = quiet


def is_quiet() -> bool:
    """Whether the result alone is asked for."""
    return _asked["quiet"]


def aside() -> Console:
    """The console for what accompanies a result: silent under `--quiet`."""
    return console(quiet=is_quiet())


def ending(lines: Sequence[str], result: object, warnings: Sequence[str] = ()) -> None:
    """How a verb that makes something ends: with its lines, or under `--quiet` with what it made alone.

    Args:
        lines: What a person wants to know of it, the warnings included.
        result: What was made.
        warnings: Told on stderr where the lines are not.
    """
    typer.echo(str(result) if is_quiet() else "\n".join(lines))
    for warning in warnings if is_quiet() else ():
        typer.echo(f"warning: {warning}", err=True)


def progress_screen() -> dict[str, Any]:
    """Where rich's Progress shows itself: on a terminal, on stderr, unless `--quiet`."""
    screen = console(stderr=True)
    return {"console": screen, "disable": is_quiet() or not screen.is_terminal}


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
    with Progress(*columns, **progress_screen(), transient=True) as bar:
        task = bar.add_task(description, total=None)
        yield lambda count, total=None: bar.update(task, advance=count, total=total)


def print_error(error: IxtuneError) -> None:
    """What is wrong and where, the findings, and how to mend it, on stderr."""
    print_red(f"error: {error}")
    for note in error.notes:
        typer.echo(f"  {note}", err=True)
    typer.echo(f"hint:  {error.hint}", err=True)


def print_red(text: str) -> None:
    """A line on stderr: red on a terminal, unless NO_COLOR is set (no-color.org)."""
    typer.secho(text, fg=typer.colors.RED, err=True, color=False if os.environ.get("NO_COLOR") else None)


def quiet_libraries() -> None:
    """Keep the libraries' notices from between our lines; to be called before they are imported."""
    import logging
    import warnings

    # peft 0.21 reads a property that transformers 5.23 has renamed; it still works
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # warns at every fork of a data loader otherwise
    # names the optional package `kernels` at import, which would ask the hub (TRAPS of bitsandbytes 0.50)
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
