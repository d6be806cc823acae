"""`ixtune preview`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer


def command(
    folder: Annotated[Path, typer.Argument(help="Prepared set, written by `ixtune prepare`.", metavar="DIR")],
    out: Annotated[
        Path | None, typer.Option(help="Output folder; it must not exist yet. Default: DIR-preview.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Approximate number of images to draw, spread over the set.")] = 100,
) -> None:
    """Draw images with their crop grids, and write an HTML page to sort and search records and rejects.

    The page, index.html, is self-contained. In addition to the sample it shows the record with the most tokens and the
    images with the most padding and the most extreme aspect ratio.

    Example: ixtune preview data/train
    """
    from ixtune.cli.console import aside, ending
    from ixtune.data.preview import PAGE, PICTURES, preview

    with _progress() as progress:
        report = preview(folder, out, limit=limit, progress=progress)
    screen = aside()
    for problem in report.problems:
        screen.print(f"not drawn  {problem}", markup=False)
    size = (report.out / PAGE).stat().st_size
    screen.print(f"images     {report.images:,} in {report.out / PICTURES}", markup=False)
    page = report.out / PAGE
    ending([f"page       {page}: {report.records:,} records, {size / 1e6:.1f} MB"], page)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar over the images, on a terminal only."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ixtune.cli.console import progress_screen

    columns = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, **progress_screen(), transient=True) as bar:
        task = bar.add_task("drawing", total=None)
        yield lambda drawn, total: bar.update(task, completed=drawn, total=total)
