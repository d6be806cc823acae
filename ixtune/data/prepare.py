"""Convert sources to a prepared set (`ixtune prepare`), all or nothing.

Only the header and the end of an image file are read, unless `verify` is set. Memory grows with the number of records
by their ids, kept to find duplicates, and one length each; a split or weighted sampling needs some hundred bytes more
per record.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ixtune.data import ray_pool, worker_pool
from ixtune.data.collector import Collector
from ixtune.data.images.near_images import require_package
from ixtune.data.images.pixels import Corrections
from ixtune.data.prepared import store
from ixtune.data.prepared.manifest import OVER_LENGTH, PAGES, PrepareOptions
from ixtune.data.prepared.shared_images import ExcludedImages
from ixtune.data.prepared.statistics import Statistics
from ixtune.data.rejects import Reason
from ixtune.data.remote_files import local_copies, require_embedded
from ixtune.data.sources.data_config import MISSING_PLACEHOLDER
from ixtune.data.sources.source import Source
from ixtune.data.sources.source_loader import Opened, open_source
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.errors import DataError, IxtuneError, UsageError, option_of, require_one_of
from ixtune.files import atomic_folder
from ixtune.layout import MAX_HD_NUM

Progress = Callable[[int, int, int], None]
"""Callback that receives the number of records read and rejected so far, and the position in all sources."""


ENGINES = ("processes", "ray")
"""Where chunks are prepared: in processes of this machine, or on a Ray cluster."""


@dataclass(frozen=True, slots=True)
class SourceReport:
    """Result for one source; accepted + rejected = read.

    Attributes:
        opened: The source with its detected format.
        read: Number of its records.
        accepted: Number of records that became samples.
        with_images: Number of accepted records with at least one image.
        rows: Number of their rows in the set, after weight or count.
    """

    opened: Opened
    read: int
    accepted: int
    with_images: int
    rows: int


@dataclass(frozen=True, slots=True)
class PrepareReport:
    """Result of a run.

    Attributes:
        out: The prepared set, or the folder that contains both sets of a split.
        sources: Result for each source.
        rejected_by_reason: Number of rejects by reason code, the most common first.
        sets: Statistics of the written sets by split; without a split under "".
    """

    out: Path
    sources: tuple[SourceReport, ...]
    rejected_by_reason: dict[str, int]
    sets: dict[str, Statistics]

    @property
    def read(self) -> int:
        """Number of records of all sources: `accepted + rejected`."""
        return sum(source.read for source in self.sources)

    @property
    def accepted(self) -> int:
        """Number of records that became samples."""
        return sum(source.accepted for source in self.sources)

    @property
    def rejected(self) -> int:
        """Number of records in rejects.jsonl."""
        return sum(self.rejected_by_reason.values())


class TooManyRejects(DataError):  # noqa: N818 - it says more than TooManyRejectsError
    """The set is written, but the share of rejected records exceeds the threshold.

    Args:
        report: Report of the run.
        max_reject_rate: The threshold.
    """

    def __init__(self, report: PrepareReport, max_reject_rate: float) -> None:
        super().__init__(
            f"{report.rejected:,} of {report.read:,} records were rejected, more than {max_reject_rate:.2%}",
            where=str(report.out / store.REJECTS),
            hint="fix the source as that file describes and prepare it again, or raise --max-reject-rate",
            notes=[f"the {report.accepted:,} good records are written to {report.out}"],
        )
        self.report = report


def prepare(
    sources: Sequence[Source],
    out: Path,
    *,
    base: Path,
    options: PrepareOptions,
    max_reject_rate: float = 0.01,
    workers: int = 1,
    engine: str = "processes",
    opened: Callable[[Sequence[Opened]], None] | None = None,
    progress: Progress | None = None,
) -> PrepareReport:
    """Convert sources to a prepared set in the new folder `out`; faulty records go to its rejects.jsonl.

    Nothing is truncated: a record that is too long is rejected, or its images get a lower hd_num. If anything fails,
    `out` does not exist.

    Args:
        sources: Sources in the order of their records in the set.
        out: The folder to write; it must not exist.
        base: A folder with the tokenizer.model of the base.
        options: PrepareOptions that determine the content of the set.
        max_reject_rate: Share of rejects, 0 to 1, above which `TooManyRejects` is raised.
        workers: Processes; any number gives the same bytes.
        engine: Where they run, one of `ENGINES`; each gives the same bytes.
        opened: Receives what was detected, before records are read.
        progress: Receives the progress.

    Raises:
        UsageError: A source, an image root or an option is wrong, or `out` exists.
        IxtuneError: A source or the tokenizer cannot be read.
        DataError: No record was accepted, and nothing was written.
        TooManyRejects: The set was written, but more than `max_reject_rate` of the records were rejected.
    """
    _require_consistent(sources, options, max_reject_rate, workers, engine)
    if os.path.lexists(out):
        raise UsageError("the output exists already", where=str(out), hint="choose another --out")
    require_embedded(sources, embed=options.embed_images)
    tokenizer = Tokenizer.from_base(base)
    if options.near_duplicates:
        require_package()
    excluded = None
    if options.exclude:
        excluded = ExcludedImages.of([Path(one) for one in options.exclude], near=options.near_duplicates)
    results = ray_pool.results if engine == "ray" else worker_pool.results
    with local_copies(sources) as local, atomic_folder(out) as folder:
        found = [open_source(source) for source in local]
        if opened is not None:
            opened(found)
        collector = Collector(found, options, folder, excluded)
        with collector.writer() as writer, open(folder / store.REJECTS, "wb") as rejects:
            for job, chunk in results(collector.tasks(), tokenizer.path, workers):
                batch, refused = collector.take(job, chunk)
                writer.add_batch(batch)
                rejects.writelines(reject.row() for reject in refused)
                if progress is not None:
                    progress(collector.read, collector.rejected.total(), collector.position)
        _require_some(collector)
        collector.finish(tokenizer.sha256)
    report = PrepareReport(
        out=out,
        sources=tuple(
            SourceReport(one.opened, one.read, one.accepted, one.with_images, one.rows) for one in collector.sources
        ),
        rejected_by_reason=collector.rejected_by_reason,
        sets=collector.sets,
    )
    # records removed by --exclude are not a fault of the data
    wanted_out = report.rejected_by_reason.get(Reason.IN_EXCLUDED_SET.value, 0)
    if report.rejected - wanted_out > max_reject_rate * report.read:
        raise TooManyRejects(report, max_reject_rate)
    return report


def _require_consistent(
    sources: Sequence[Source], options: PrepareOptions, max_reject_rate: float, workers: int, engine: str
) -> None:
    """Raise for options that are missing, out of range or contradictory."""
    if options.hd_num is None and any(one.hd_num is None for one in sources):
        raise UsageError(
            "hd_num, the maximum number of crops per image, is not given",
            where="--hd-num",
            hint="pass --hd-num: 9 for photographs, 16 or 25 for documents, 55 for dense 4K pages",
        )
    if not sources:
        raise UsageError("no source is given", hint="pass a file or a folder; see `ixtune prepare --help`")
    hd_num, max_tokens, dpi, fraction = options.hd_num, options.max_tokens, options.dpi, options.val_fraction
    wrong = [
        (f"{name} is {value!r}, not {wanted}", option_of(name))
        for name, value, fits, wanted in (
            ("hd_num", hd_num, hd_num is None or 1 <= hd_num <= MAX_HD_NUM, f"from 1 to {MAX_HD_NUM}"),
            ("max_tokens", max_tokens, max_tokens is None or max_tokens >= 1, "1 or more"),
            ("val_fraction", fraction, 0 <= fraction < 1, "from 0 to below 1"),
            ("max_reject_rate", max_reject_rate, 0 <= max_reject_rate <= 1, "from 0 to 1"),
            ("over_length", options.over_length, options.over_length in OVER_LENGTH, " or ".join(OVER_LENGTH)),
            ("engine", engine, engine in ENGINES, " or ".join(ENGINES)),
            ("pages", options.pages, options.pages in PAGES, " or ".join(PAGES)),
            ("dpi", dpi, dpi is None or dpi >= 1, "1 or more"),
            ("workers", workers, workers >= 1, "1 or more"),
        )
        if not fits
    ]
    if wrong:
        (text, option), *others = wrong
        notes = [f"{text} ({option})" for text, option in others]
        raise UsageError(text, where=option, hint="correct the option; see `ixtune prepare --help`", notes=notes)
    if options.over_length != "reject" and max_tokens is None:
        raise UsageError(
            f"over_length is {options.over_length!r}, but max_tokens is not given",
            where="--over-length",
            hint="pass --max-tokens as well, or leave out --over-length",
        )
    for source in sources:
        if source.missing_placeholder is not None:
            require_one_of("missing_placeholder", source.missing_placeholder, MISSING_PLACEHOLDER)
    Corrections.of(options.corrections)


def _require_some(collector: Collector) -> None:
    """Raise if there is nothing to write."""
    where = ", ".join(one.opened.source.name for one in collector.sources)
    if collector.read == 0:
        raise IxtuneError("the source holds no record", where=where, hint="pass a source with records")
    if not any(one.accepted for one in collector.sources):
        by_reason = [(count, collector.first_rejects[code]) for code, count in collector.rejected_by_reason.items()]
        raise DataError(
            f"all {collector.read:,} records were rejected; nothing is written",
            where=where,
            hint=by_reason[0][1].hint,
            notes=[
                f"{count:,} {first.reason.value}, such as record {first.record}, {first.place} of {first.source}: "
                f"{first.found}"
                for count, first in by_reason
            ],
        )
