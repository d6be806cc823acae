"""`ixtune prepare`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ixtune.base import HUB_ID
from ixtune.layout import MAX_HD_NUM

if TYPE_CHECKING:
    from ixtune.data.prepare import Progress
    from ixtune.data.sources.source import Source
    from ixtune.data.sources.source_loader import Opened

# tokenising scales with the cores; more processes than this only wait for the one that reads
_MOST_WORKERS = 8
_PLAIN_LINE_EVERY_S = 30.0


def command(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="CSV, TSV, Parquet, JSON, JSON Lines, a folder (datasets, images with metadata, Parquet or tar "
            "shards), a hub name, a data.txt, or a YAML list of sources.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist yet.")],
    hd_num: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_HD_NUM, help="Most 336x336 crops per image: 9, 16, 25, 55; records can say."),
    ] = None,
    base: Annotated[str, typer.Option(help="`nano`, a folder with its tokenizer.model, or a hub id.")] = HUB_ID,
    format_: Annotated[
        str | None,
        typer.Option("--format", metavar="NAME", help="Instead of what is detected: csv, llava, openai, ..."),
    ] = None,
    columns: Annotated[
        str, typer.Option(metavar="OURS=THEIRS,...", help="Of tables: question=q,answer=a,image=file,id=key.")
    ] = "",
    question: Annotated[
        str | None, typer.Option(help="Ask this of every record of a table without a question column.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System prompt of records that bring none.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a dataset that has several.")] = None,
    config: Annotated[str | None, typer.Option(help="Of a hub dataset that has several configurations.")] = None,
    image_root: Annotated[
        Path | None, typer.Option(help="Folder the image paths start from. Default: the source's folder.")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Longest record, image tokens included. Default: no limit."),
    ] = None,
    over_length: Annotated[
        str, typer.Option(metavar="reject|lower", help="Reject longer records, or lower their images' hd_num.")
    ] = "reject",
    upscale: Annotated[
        bool, typer.Option("--upscale/--no-upscale", help="Enlarge small images, as the reference does.")
    ] = True,
    correct: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="Depart from the reference: exif (turn), alpha (on white), depth (16 to 8 bits), first-frame.",
        ),
    ] = "",
    verify: Annotated[bool, typer.Option("--verify", help="Decode every pixel; headers alone can lie.")] = False,
    embed_images: Annotated[
        bool, typer.Option("--embed-images", help="Copy the images into the set, each once.")
    ] = False,
    val_fraction: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share for OUT/validation; no image is on both sides.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the split and of draws by weight.")] = 0,
    thousands: Annotated[bool, typer.Option("--thousands/--ratios", help="What the numbers in a data.txt are.")] = True,
    max_reject_rate: Annotated[
        float,
        typer.Option(min=0, max=1, help="Exit with 3 above this share of rejects; the rest is written."),
    ] = 0.01,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    workers: Annotated[
        int | None, typer.Option("--workers", "-j", min=1, help="Processes; any number gives the same set.")
    ] = None,
) -> None:
    """Turn data into a prepared set: token ids, image layouts, and a list of what was rejected and why.

    The simplest source is a CSV with the columns image, question and answer; conversations come as JSON. The format is
    detected from the content and printed. Nothing is cut off, nothing is downloaded but a hub dataset. `ixtune preview
    OUT` shows the result.

    Example: ixtune prepare receipts.csv --image-root photos --out data/receipts --hd-num 16

    Example: ixtune prepare chats.jsonl mix.yaml --out data/all --hd-num 25 --max-tokens 8192 --val-fraction 0.05
    """
    from ixtune.base import resolve_tokenizer
    from ixtune.cli.prepare_report import as_json as report_json
    from ixtune.cli.prepare_report import print_report
    from ixtune.data.prepare import TooManyRejects, prepare
    from ixtune.data.prepared.manifest import Options
    from ixtune.data.sources.command_line import sources_given

    options = Options(
        hd_num=hd_num,
        upscale=upscale,
        corrections=tuple(filter(None, correct.split(","))),
        max_tokens=max_tokens,
        over_length=over_length,
        verify=verify,
        embed_images=embed_images,
        val_fraction=val_fraction,
        seed=seed,
    )
    defaults = _defaults(
        format_, columns, question=question, system=system, split=split, config=config, image_root=image_root
    )
    given = sources_given(sources, defaults, thousands)
    with _progress(told=not as_json) as (opened, progress):
        try:
            report = prepare(
                given,
                out,
                base=resolve_tokenizer(base),
                options=options,
                max_reject_rate=max_reject_rate,
                workers=workers or min(os.cpu_count() or 1, _MOST_WORKERS),
                opened=opened,
                progress=progress,
            )
            error = None
        except TooManyRejects as too_many:
            report, error = too_many.report, too_many
    if as_json:
        typer.echo(report_json(report))
    else:
        print_report(report, options)
    if error is not None:
        raise error


def _defaults(format_: str | None, columns: str, **others: Any) -> Source:
    """What the options say of every source."""
    from ixtune.data.sources.data_config import columns_of, format_of
    from ixtune.data.sources.source import Source

    container, schema = format_of(format_) if format_ else (None, None)
    return Source(path="", container=container, schema=schema, columns=columns_of(columns), **others)


def _share(source: Source) -> str:
    """How often its records shall stand in an epoch."""
    if source.count is not None:
        return f"; {source.count:,} records of it in an epoch"
    return f"; each record {source.weight:g} times in an epoch" if source.weight is not None else ""


@contextmanager
def _progress(*, told: bool) -> Iterator[tuple[Any, Progress]]:
    """Informed of what was opened, it tells what was detected; of how far it is, a bar, or now and then a line."""
    import time

    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from ixtune.cli.console import aside, is_quiet, progress_screen

    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    began = last = time.monotonic()
    with Progress(*columns, **progress_screen(), transient=True) as bar:
        task = bar.add_task("opening", total=None)

        def opened(found: Sequence[Opened]) -> None:
            for one in found if told else ():
                aside().print(
                    f"source   {one.source.path}: {one.detected}{_share(one.source)}", markup=False, soft_wrap=True
                )
            totals = [one.total for one in found]
            if None not in totals:
                bar.update(task, total=sum(total or 0 for total in totals))

        def show(records: int, rejected: int, position: int) -> None:
            nonlocal last
            now = time.monotonic()
            line = f"{records:,} records, {records / max(now - began, 1e-9):,.0f}/s, {rejected:,} rejected"
            bar.update(task, completed=position, description=line)
            if bar.disable and not is_quiet() and now - last >= _PLAIN_LINE_EVERY_S:
                last = now
                typer.echo(line, err=True)

        yield opened, show
