"""Console, tables, progress bars and errors for all commands; silences the libraries' notices."""

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

# a pipe has no width: wide enough that no cell is folded, so that grep works
_PIPE_COLUMNS = 400
_asked = {"quiet": False}


def console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Return a rich console on stdout or stderr; it folds lines on a terminal only."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False, quiet=quiet)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, quiet=quiet, width=_PIPE_COLUMNS)


def be_quiet(quiet: bool) -> None:
    """Set whether to print results only (`--quiet`)."""
    _asked["quiet"] = quiet


def is_quiet() -> bool:
    """Return whether to print results only."""
    return _asked["quiet"]


def aside() -> Console:
    """Return the console for everything but results and errors: silent under `--quiet`."""
    return console(quiet=is_quiet())


def ending(lines: Sequence[str], result: object, warnings: Sequence[str] = ()) -> None:
    """Print the summary of a command that wrote something; under `--quiet` only what it wrote.

    Args:
        lines: The summary, warnings included.
        result: What was written, such as a path.
        warnings: Printed on stderr under `--quiet`.
    """
    typer.echo(str(result) if is_quiet() else "\n".join(lines))
    for warning in warnings if is_quiet() else ():
        typer.echo(f"warning: {warning}", err=True)


def progress_screen() -> dict[str, Any]:
    """Return arguments of rich's Progress: shown on a terminal's stderr, by the first process, unless `--quiet`."""
    from ixtune.cli.processes import is_first

    screen = console(stderr=True)
    return {"console": screen, "disable": is_quiet() or not screen.is_terminal or not is_first()}


def table(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[str]], whole: Sequence[str] = ()) -> Table:
    """Return a rich table of plain texts; square brackets in a cell are not markup.

    Args:
        title: Title above the table, if any.
        columns: Their heads.
        rows: The cells.
        whole: Columns, such as those of numbers, that are not folded on a narrow terminal.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold", no_wrap=column in whole)
    for row in rows:
        made.add_row(*map(Text, row))
    return made


@contextmanager
def progress(description: str) -> Iterator[Callable[..., None]]:
    """Show a progress bar on stderr, on a terminal.

    Yields a function `advance(count, total=None)`; the total may be passed once it is known.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, **progress_screen(), transient=True) as bar:
        task = bar.add_task(description, total=None)
        yield lambda count, total=None: bar.update(task, advance=count, total=total)


def print_error(error: IxtuneError) -> None:
    """Print an error on stderr: what is wrong and where, its notes, and the hint."""
    print_red(f"error: {error}")
    for note in error.notes:
        typer.echo(f"  {note}", err=True)
    typer.echo(f"hint:  {error.hint}", err=True)


def print_red(text: str) -> None:
    """Print a line on stderr, in red on a terminal unless NO_COLOR is set (no-color.org)."""
    typer.secho(text, fg=typer.colors.RED, err=True, color=False if os.environ.get("NO_COLOR") else None)


def quiet_libraries() -> None:
    """Silence the notices of the libraries; call this before they are imported."""
    import logging
    import warnings

    # peft 0.21 reads a property that transformers 5.23 has renamed; it still works
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # warns at every fork of a data loader otherwise
    # names the optional package `kernels` at import, which would ask the hub (TRAPS of bitsandbytes 0.50)
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
