"""`ixtune prepare`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ixtune.base import HUB_ID
from ixtune.errors import UsageError
from ixtune.layout import MAX_HD_NUM

if TYPE_CHECKING:
    from ixtune.data.prepare import Progress
    from ixtune.data.sources.source import Source
    from ixtune.data.sources.source_loader import Opened

_READING = "How the data are read"
_IMAGES = "Images"
_RUN = "The run"
# tokenising scales with the cores; more processes than this only wait for the one that reads
_MOST_WORKERS = 8
_PLAIN_LINE_EVERY_S = 30.0


def command(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="CSV, TSV, Excel, Parquet, JSON, JSON Lines, a folder (datasets, images with metadata or with a file "
            "each, class folders, Parquet or tar shards), a hub name, a data.txt, or a YAML list of sources.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Output folder; it must not exist yet.")],
    hd_num: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_HD_NUM,
            help="Maximum number of crops per image, e.g. 9, 16, 25 or 55, or 4, 6, 9 or 18 for 2.5. "
            "A record's own `hd_num` takes precedence.",
        ),
    ] = None,
    base: Annotated[
        str, typer.Option(help="Base model: a hub id, a folder with its tokenizer.model, or `nano`.")
    ] = HUB_ID,
    model: Annotated[
        str | None, typer.Option(metavar="4khd|2.5", help="Model to prepare for. Default: that of the base.")
    ] = None,
    image_root: Annotated[
        Path | None, typer.Option(help="Folder that image paths are relative to. Default: the source's folder.")
    ] = None,
    columns: Annotated[
        str,
        typer.Option(
            metavar="OURS=THEIRS,...",
            help="Names of fields: image=file,question=query.en,answer=answers[].answer,id=key. Default: detected.",
        ),
    ] = "",
    question: Annotated[
        str | None, typer.Option(help="Question of every record, for a table without a question column.")
    ] = None,
    val_fraction: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.9,
            help="Fraction of records to put in OUT/validation. Records that share an image stay on the same side.",
        ),
    ] = 0.0,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum length of a record, image tokens included. Default: no limit."),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help="Format of the data, e.g. csv, llava or openai. Default: detected.",
            rich_help_panel=_READING,
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Split of a dataset, sheet of a workbook, or list of a JSON object, where there are several.",
            rich_help_panel=_READING,
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(help="Configuration of a hub dataset that has several.", rich_help_panel=_READING),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Data set to read from LLaMA-Factory's dataset_info.json.", rich_help_panel=_READING
        ),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            help="Text encoding of CSV and TSV files, e.g. cp1252. Default: UTF-8, or UTF-16 with a byte order mark.",
            rich_help_panel=_READING,
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="System prompt for records that have none.", rich_help_panel=_READING)
    ] = None,
    thousands: Annotated[
        bool,
        typer.Option(
            "--thousands/--ratios",
            help="Meaning of the numbers in a data.txt: thousands of records, or ratios.",
            rich_help_panel=_READING,
        ),
    ] = True,
    image_pattern: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Path of each image with fields in braces, e.g. val2014/COCO_val2014_{image_id:012d}.jpg.",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    missing_placeholder: Annotated[
        str | None,
        typer.Option(
            metavar="front|reject",
            help="Images that no <image> places: put them in front of the first question, or reject the record. "
            "Default: a single image goes in front, several are rejected.",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    allow_image_text: Annotated[
        bool,
        typer.Option(
            "--allow-image-text",
            help="Train marks such as <img> or <|image_pad|> as text. Default: records with them are rejected.",
            rich_help_panel=_IMAGES,
        ),
    ] = False,
    over_length: Annotated[
        str,
        typer.Option(
            metavar="reject|lower",
            help="What to do with records longer than --max-tokens: reject them, or lower the hd_num of their images.",
            rich_help_panel=_IMAGES,
        ),
    ] = "reject",
    layout_rule: Annotated[
        str | None,
        typer.Option(
            metavar="fine-tuning|inference",
            help="How images are laid out for 2.5: as its official fine-tuning or its chat does. Default: fine-tuning.",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    upscale: Annotated[
        bool,
        typer.Option(
            "--upscale/--no-upscale", help="Enlarge small images, as the reference does.", rich_help_panel=_IMAGES
        ),
    ] = True,
    correct: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="Corrections that the reference does not make: exif (rotate), alpha (put on white), depth (scale 16 "
            "to 8 bits), first-frame. Default: none.",
            rich_help_panel=_IMAGES,
        ),
    ] = "",
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Decode every pixel to find damaged images. Default: headers only.",
            rich_help_panel=_IMAGES,
        ),
    ] = False,
    embed_images: Annotated[
        bool,
        typer.Option(
            "--embed-images", help="Copy the images into the prepared set, each once.", rich_help_panel=_IMAGES
        ),
    ] = False,
    pages: Annotated[
        str,
        typer.Option(
            metavar="one|all",
            help="What to do with a TIFF of several pages that is named without #page=: take all pages, or reject it "
            "(one).",
            rich_help_panel=_IMAGES,
        ),
    ] = "one",
    dpi: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Resolution of PDF pages in pixels per inch. Default: the one that fills the layout at hd_num.",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    exclude: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PREPARED",
            help="Reject records that show an image of this prepared set, e.g. a benchmark; repeat for several.",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    near_duplicates: Annotated[
        bool,
        typer.Option(
            "--near-duplicates",
            help="Treat images that look the same as one image in the split and for --exclude; decodes every image. "
            "Default: images with the same bytes only.",
            rich_help_panel=_IMAGES,
        ),
    ] = False,
    seed: Annotated[
        int,
        typer.Option(
            help="Random seed for the train/validation split and for weighted sampling.", rich_help_panel=_RUN
        ),
    ] = 0,
    max_reject_rate: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Exit with code 3 if a larger fraction is rejected; the accepted records are written all the same.",
            rich_help_panel=_RUN,
        ),
    ] = 0.01,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.", rich_help_panel=_RUN)] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            "-j",
            min=1,
            help="Number of processes; any number gives the same set. Default: one per core, at most 8.",
            rich_help_panel=_RUN,
        ),
    ] = None,
) -> None:
    """Convert data into a prepared set: token ids, image layouts, and a list of the rejected records with reasons.

    The simplest source is a CSV with the columns image, question and answer; conversations come as JSON. The format is
    detected from the content and printed. No record is truncated, no image is left out in silence, and only hub
    datasets are downloaded. `ixtune preview OUT` shows the result.

    Example: ixtune prepare receipts.csv --image-root photos --out data/receipts --hd-num 16

    Example: ixtune prepare chats.jsonl mix.yaml --out data/all --hd-num 25 --max-tokens 8192 --val-fraction 0.05
    """
    from ixtune.base import resolve_tokenizer
    from ixtune.checkpoint.member import member_for
    from ixtune.cli.prepare_report import as_json as report_json
    from ixtune.cli.prepare_report import print_report
    from ixtune.data.prepare import TooManyRejects, prepare
    from ixtune.data.prepared.manifest import Options
    from ixtune.data.sources.command_line import sources_given

    defaults = _defaults(
        format_,
        columns,
        question=question,
        system=system,
        split=split,
        config=config,
        image_root=image_root,
        image_pattern=image_pattern,
        encoding=encoding,
        missing_placeholder=_one_of("--missing-placeholder", missing_placeholder),
        allow_image_text=allow_image_text or None,
    )
    given = sources_given(sources, defaults, thousands, dataset)
    folder = resolve_tokenizer(base)
    member = member_for(base, folder, model, layout_rule)
    options = Options(
        model=member.name,
        layout_rule=member.rule.name,
        hd_num=hd_num,
        upscale=upscale,
        corrections=tuple(filter(None, correct.split(","))),
        max_tokens=max_tokens,
        over_length=over_length,
        verify=verify,
        embed_images=embed_images,
        val_fraction=val_fraction,
        seed=seed,
        pages=pages,
        dpi=dpi,
        exclude=tuple(map(str, exclude or ())),
        near_duplicates=near_duplicates,
    )
    with _progress(told=not as_json) as (opened, progress):
        try:
            report = prepare(
                given,
                out,
                base=folder,
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


def _one_of(option: str, value: str | None) -> str | None:
    from ixtune.data.sources.data_config import MISSING_PLACEHOLDER

    if value is None or value in MISSING_PLACEHOLDER:
        return value
    raise UsageError(f"{option} is {value}", hint=f"give one of {', '.join(MISSING_PLACEHOLDER)}, or leave it out")


def _defaults(format_: str | None, columns: str, **others: Any) -> Source:
    """Return the settings that the options give to every source."""
    from ixtune.data.sources.data_config import columns_of, format_of
    from ixtune.data.sources.source import Source

    container, schema = format_of(format_) if format_ else (None, None)
    return Source(path="", container=container, schema=schema, columns=columns_of(columns), **others)


def _share(source: Source) -> str:
    """Return the repeats per epoch of a source's records, for the line that describes it."""
    if source.count is not None:
        return f"; {source.count:,} records of it in an epoch"
    return f"; each record {source.weight:g} times in an epoch" if source.weight is not None else ""


@contextmanager
def _progress(*, told: bool) -> Iterator[tuple[Any, Progress]]:
    """Yield two callbacks: one prints what was detected in each source, the other moves a progress bar."""
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
