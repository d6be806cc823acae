"""`ixtune prepare`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from ixtune.base import HUB_ID
from ixtune.cli.prepare_options import (
    AllowImageTextOption,
    AsJsonOption,
    BaseOption,
    ColumnsOption,
    ConfigOption,
    CorrectOption,
    DatasetOption,
    DpiOption,
    EmbedImagesOption,
    EncodingOption,
    EngineOption,
    ExcludeOption,
    FormatOption,
    HdNumOption,
    ImagePatternOption,
    ImageRootOption,
    LayoutRuleOption,
    MaxRejectRateOption,
    MaxTokensOption,
    MissingPlaceholderOption,
    ModelOption,
    NearDuplicatesOption,
    OutOption,
    OverLengthOption,
    PagesOption,
    QuestionOption,
    SeedOption,
    SourcesArgument,
    SplitOption,
    SystemOption,
    ThousandsOption,
    UpscaleOption,
    ValFractionOption,
    VerifyOption,
    WorkersOption,
)

if TYPE_CHECKING:
    from ixtune.data.prepare import Progress
    from ixtune.data.sources.source import Source
    from ixtune.data.sources.source_loader import Opened

# tokenization scales with the cores; more processes than this only wait for the one that reads
_MOST_WORKERS = 8
_PLAIN_LINE_EVERY_S = 30.0


def command(
    sources: SourcesArgument,
    out: OutOption,
    hd_num: HdNumOption = None,
    base: BaseOption = HUB_ID,
    model: ModelOption = None,
    image_root: ImageRootOption = None,
    columns: ColumnsOption = "",
    question: QuestionOption = None,
    val_fraction: ValFractionOption = 0.0,
    max_tokens: MaxTokensOption = None,
    format_: FormatOption = None,
    split: SplitOption = None,
    config: ConfigOption = None,
    dataset: DatasetOption = None,
    encoding: EncodingOption = None,
    system: SystemOption = None,
    thousands: ThousandsOption = True,
    image_pattern: ImagePatternOption = None,
    missing_placeholder: MissingPlaceholderOption = None,
    allow_image_text: AllowImageTextOption = False,
    over_length: OverLengthOption = "reject",
    layout_rule: LayoutRuleOption = None,
    upscale: UpscaleOption = True,
    correct: CorrectOption = "",
    verify: VerifyOption = False,
    embed_images: EmbedImagesOption = False,
    pages: PagesOption = "one",
    dpi: DpiOption = None,
    exclude: ExcludeOption = None,
    near_duplicates: NearDuplicatesOption = False,
    seed: SeedOption = 0,
    max_reject_rate: MaxRejectRateOption = 0.01,
    as_json: AsJsonOption = False,
    workers: WorkersOption = None,
    engine: EngineOption = "processes",
) -> None:
    """Convert data into a prepared set: token ids, image layouts, and a list of the rejected records with reasons.

    The simplest source is a CSV with the columns image, question and answer; conversations come as JSON. The format is
    detected from the content and printed. No record is truncated, no image is dropped silently, and nothing is
    downloaded except hub datasets and data in object stores. `ixtune preview OUT` shows the result.

    Example: ixtune prepare receipts.csv --image-root photos --out data/receipts --hd-num 16

    Example: ixtune prepare chats.jsonl mix.yaml --out data/all --hd-num 25 --max-tokens 8192 --val-fraction 0.05
    """
    from ixtune.base import resolve_tokenizer
    from ixtune.checkpoint.member import member_for
    from ixtune.cli.prepare_report import as_json as report_json
    from ixtune.cli.prepare_report import print_report
    from ixtune.data.prepare import TooManyRejects, prepare
    from ixtune.data.prepared.manifest import PrepareOptions
    from ixtune.data.remote_files import roots_of
    from ixtune.data.sources.command_line import sources_given

    defaults = _defaults(
        format_,
        columns,
        question=question,
        system=system,
        split=split,
        config=config,
        **roots_of(image_root),
        image_pattern=image_pattern,
        encoding=encoding,
        missing_placeholder=missing_placeholder,
        allow_image_text=allow_image_text or None,
    )
    given = sources_given(sources, defaults, thousands, dataset)
    folder = resolve_tokenizer(base)
    member = member_for(base, folder, model, layout_rule)
    options = PrepareOptions(
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
    with _progress(show_sources=not as_json) as (opened, progress):
        try:
            report = prepare(
                given,
                out,
                base=folder,
                options=options,
                max_reject_rate=max_reject_rate,
                workers=workers or _workers(engine),
                engine=engine,
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


def _workers(engine: str) -> int:
    """Return the default number of processes."""
    if engine == "ray":
        from ixtune.data.ray_pool import cluster_cpus

        return cluster_cpus()
    return min(os.cpu_count() or 1, _MOST_WORKERS)


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
def _progress(*, show_sources: bool) -> Iterator[tuple[Any, Progress]]:
    """Yield two callbacks: one prints what was detected in each source, the other moves a progress bar."""
    import time

    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from ixtune.cli.console import aside, is_quiet, progress_screen

    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    began = last = time.monotonic()
    with Progress(*columns, **progress_screen(), transient=True) as bar:
        task = bar.add_task("opening", total=None)

        def opened(found: Sequence[Opened]) -> None:
            for one in found if show_sources else ():
                aside().print(
                    f"source   {one.source.name}: {one.detected}{_share(one.source)}", markup=False, soft_wrap=True
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
