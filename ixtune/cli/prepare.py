"""`ixtune prepare`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ixtune.base import HUB_ID

if TYPE_CHECKING:
    from ixtune.data.prepare import PrepareReport, Progress

_GRIDS_SHOWN = 12


def command(
    source: Annotated[
        Path,
        typer.Argument(help="JSON list or JSON Lines of {id, image: [paths], conversations: [{from, value}]}."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist yet.")],
    hd_num: Annotated[int, typer.Option(min=1, help="Most 336x336 crops per picture: 9, 16, 25, 55.")],
    base: Annotated[str, typer.Option(help="`nano`, a folder with its tokenizer.model, or a hub id.")] = HUB_ID,
    image_root: Annotated[
        Path | None, typer.Option(help="Folder the image paths start from. Default: the source's folder.")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Reject longer records, image tokens included. Default: no limit."),
    ] = None,
    max_reject_rate: Annotated[
        float,
        typer.Option(min=0, max=1, help="Exit with 3 above this share of rejects; the rest is written."),
    ] = 0.01,
) -> None:
    """Turn a source into a prepared set: token ids, image layouts, and a list of what was rejected and why.

    Nothing is cut off, and no picture is copied: the set refers to the files below the image root.

    Example: ixtune prepare receipts/train.json --out data/train --hd-num 16 --max-tokens 4096
    """
    from ixtune.data.prepare import TooManyRejects, prepare

    with _progress(source) as progress:
        try:
            report = prepare(
                source,
                out,
                base=_tokenizer_folder(base),
                hd_num=hd_num,
                image_root=image_root,
                max_tokens=max_tokens,
                max_reject_rate=max_reject_rate,
                progress=progress,
            )
            error = None
        except TooManyRejects as too_many:
            report, error = too_many.report, too_many
    _print_report(source, report)
    if error is not None:
        raise error


def _tokenizer_folder(base: str) -> Path:
    """The base's folder; of a folder that is here, only its tokenizer is asked for."""
    from ixtune.base import resolve
    from ixtune.data.tokenizer import FILE_NAME

    folder = Path(base).expanduser()
    return folder if (folder / FILE_NAME).is_file() else resolve(base)


@contextmanager
def _progress(source: Path) -> Iterator[Progress | None]:
    """A bar over the bytes of the source with records per second, on a terminal only."""
    from ixtune.cli.console import console

    made = console(stderr=True)
    if not made.is_terminal or not source.is_file():
        yield None
        return
    import time

    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    began = time.monotonic()
    with Progress(*columns, console=made, transient=True) as bar:
        task = bar.add_task("reading", total=source.stat().st_size)

        def show(records: int, bytes_read: int) -> None:
            rate = records / max(time.monotonic() - began, 1e-9)
            bar.update(task, completed=bytes_read, description=f"{records:,} records, {rate:,.0f}/s")

        yield show


def _print_report(source: Path, report: PrepareReport) -> None:
    from ixtune.cli.console import console, table
    from ixtune.data.rejects import Reason
    from ixtune.data.store import MANIFEST, REJECTS

    meanings = {reason.value: reason.description for reason in Reason}
    rows = [
        ["read", f"{report.read:,}"],
        ["accepted", f"{report.accepted:,}"],
        ["rejected", f"{report.rejected:,}"],
    ]
    for code, count in report.rejected_by_reason.items():
        rows.append([f"  {code}", f"{count:,}  {meanings[code]}"])
    length, tokens = report.length, report.tokens
    rows.append(["tokens per record", f"{length['min']:,} to {length['max']:,}, median {length['median']:,}"])
    rows.append(
        [
            "tokens",
            f"{tokens['total']:,}: {tokens['image']:,} image, {tokens['text']:,} text, "
            f"{tokens['supervised']:,} of these supervised",
        ]
    )
    grids = list(report.grids.items())
    shown = [f"{grid} {count:,}" for grid, count in grids[:_GRIDS_SHOWN]]
    if len(grids) > _GRIDS_SHOWN:
        shown.append(f"and {len(grids) - _GRIDS_SHOWN} more")
    rows.append(["grids (rows x cols)", ", ".join(shown) or "no pictures"])

    out = console()
    out.print(table(None, ("source", str(source)), rows))
    out.print(
        f"check    read {report.read:,} = accepted {report.accepted:,} + rejected {report.rejected:,}",
        markup=False,
    )
    out.print(f"written  {report.out}: Arrow files, {MANIFEST}, {REJECTS}", markup=False)
