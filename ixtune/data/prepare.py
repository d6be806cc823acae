"""The driver of `ixtune prepare`: a source file -> a prepared set, all or nothing.

Of a picture only the header is read. What grows with the number of records is their ids, kept to find
duplicates, and one length each.
"""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ixtune.data import formats, store
from ixtune.data.pixels import read_size
from ixtune.data.record import Record
from ixtune.data.rejects import Reason, RecordError, Reject
from ixtune.data.template import Sample, encode
from ixtune.data.tokenizer import Tokenizer
from ixtune.errors import DataError, IxtuneError, UsageError
from ixtune.files import atomic_folder, sha256_file
from ixtune.layout import LayoutError, PatchLayout, plan

Progress = Callable[[int, int], None]
"""Told how many records and how many bytes of the source have been read."""

_PROGRESS_EVERY_RECORDS = 50


@dataclass(frozen=True, slots=True)
class PrepareReport:
    """What became of a source.

    Attributes:
        out: The prepared set.
        read: Records of the source; `accepted + rejected`.
        accepted: Records that became samples.
        rejected_by_reason: Number of rejects by reason code, the commonest first.
        tokens: Sums over the accepted records: `text`, `image`, `supervised`, and `total` of text and image.
        length: `min`, `median` and `max` of a record's tokens.
        grids: Number of pictures by "rows x cols" of crops, the commonest first.
    """

    out: Path
    read: int
    accepted: int
    rejected_by_reason: dict[str, int]
    tokens: dict[str, int]
    length: dict[str, int]
    grids: dict[str, int]

    @property
    def rejected(self) -> int:
        """Records that are in rejects.jsonl."""
        return sum(self.rejected_by_reason.values())


class TooManyRejects(DataError):  # noqa: N818 - it says more than TooManyRejectsError
    """The set is written, but more of the source was rejected than the threshold allows.

    Args:
        report: What became of the source.
        max_reject_rate: The threshold.
    """

    def __init__(self, report: PrepareReport, max_reject_rate: float) -> None:
        super().__init__(
            f"{report.rejected:,} of {report.read:,} records were rejected, more than {max_reject_rate:.2%}",
            where=str(report.out / store.REJECTS),
            mend="mend the source as that file says and prepare it again, or raise --max-reject-rate",
            notes=[f"the {report.accepted:,} good records are written to {report.out}"],
        )
        self.report = report


def prepare(
    source: Path,
    out: Path,
    *,
    base: Path,
    hd_num: int,
    image_root: Path | None = None,
    max_tokens: int | None = None,
    max_reject_rate: float = 0.01,
    progress: Progress | None = None,
) -> PrepareReport:
    """Turn a source into a prepared set in the new folder `out`; what is not good goes to its rejects.jsonl.

    Nothing is cut: a record that is too long is rejected. If anything fails, `out` does not exist.

    Args:
        source: The official JSON, or JSON Lines of the same records.
        out: The folder to write; it must not exist.
        base: A folder with the tokenizer.model of the base.
        hd_num: The most crops a picture may fill.
        image_root: The folder that paths are relative to and may not leave; by default the source's.
        max_tokens: Most tokens of a record, image tokens included; by default any number.
        max_reject_rate: Share of rejects, 0 to 1, above which `TooManyRejects` is raised.
        progress: Told how far it is.

    Raises:
        UsageError: The source, the image root or a number is wrong, or `out` exists.
        IxtuneError: The source or the tokenizer cannot be read.
        DataError: No record was accepted, and nothing was written.
        TooManyRejects: The set was written, but the source is worse than `max_reject_rate`.
    """
    if hd_num < 1 or (max_tokens is not None and max_tokens < 1) or not 0 <= max_reject_rate <= 1:
        raise UsageError(
            f"no such numbers: hd_num {hd_num}, max_tokens {max_tokens}, max_reject_rate {max_reject_rate}",
            mend="give an hd_num and a max_tokens of at least 1, and a max_reject_rate from 0 to 1",
        )
    if os.path.lexists(out):
        raise UsageError("the output exists already", where=str(out), mend="choose another --out")
    root = (image_root if image_root is not None else source.parent).resolve()
    if not root.is_dir():
        raise UsageError("the image root is not a folder", where=str(root), mend="check --image-root")
    preparation = _Preparation(Tokenizer.from_base(base), root, hd_num, max_tokens)
    with atomic_folder(out) as folder:
        with store.Writer(folder) as writer, open(folder / store.REJECTS, "wb") as rejects:
            for item in formats.read(source, preparation.note_position):
                outcome = preparation.take(item)
                if isinstance(outcome, Reject):
                    rejects.write(outcome.row())
                else:
                    writer.add(outcome)
                if progress is not None and preparation.read % _PROGRESS_EVERY_RECORDS == 0:
                    progress(preparation.read, preparation.bytes_read)
        if progress is not None:
            progress(preparation.read, preparation.bytes_read)
        report = preparation.report(out)
        _require_some(report, preparation.first_rejects, source)
        store.write_manifest(folder, _manifest(report, preparation, source))
    if report.rejected > max_reject_rate * report.read:
        raise TooManyRejects(report, max_reject_rate)
    return report


@dataclass(slots=True)
class _Preparation:
    """Takes the items of a source one by one, and counts."""

    tokenizer: Tokenizer
    root: Path
    hd_num: int
    max_tokens: int | None
    read: int = 0
    bytes_read: int = 0
    records_by_id: dict[str, int] = field(default_factory=dict)
    rejected: Counter[str] = field(default_factory=Counter)
    first_rejects: dict[str, Reject] = field(default_factory=dict)
    lengths: array[int] = field(default_factory=lambda: array("l"))
    tokens: Counter[str] = field(default_factory=Counter)
    grids: Counter[str] = field(default_factory=Counter)

    def note_position(self, bytes_read: int) -> None:
        """How far into the source the reader is."""
        self.bytes_read = bytes_read

    def take(self, item: Record | Reject) -> dict[str, Any] | Reject:
        """The row of a record, or why there is none."""
        self.read += 1
        if isinstance(item, Record):
            try:
                return self._row(item)
            except RecordError as error:
                item = Reject(item.source, self.read, item.line, item.id, error.reason, str(error), error.mend)
        self.rejected[item.reason.value] += 1
        self.first_rejects.setdefault(item.reason.value, item)
        return item

    def report(self, out: Path) -> PrepareReport:
        """The counts; accepted + rejected = read is asserted, not assumed."""
        accepted = len(self.lengths)
        if accepted + self.rejected.total() != self.read:
            raise AssertionError(f"{accepted} accepted + {self.rejected.total()} rejected != {self.read} read")
        ordered = sorted(self.lengths) or [0]
        return PrepareReport(
            out=out,
            read=self.read,
            accepted=accepted,
            rejected_by_reason=_commonest_first(self.rejected),
            tokens={key: self.tokens[key] for key in ("text", "image", "supervised", "total")},
            length={"min": ordered[0], "median": ordered[len(ordered) // 2], "max": ordered[-1]},
            grids=_commonest_first(self.grids),
        )

    def _row(self, record: Record) -> dict[str, Any]:
        if record.id in self.records_by_id:
            raise RecordError(
                Reason.DUPLICATE_ID,
                f"the id {record.id} is that of record {self.records_by_id[record.id]} too",
                mend="give every record an id of its own, or remove the second of two equal records",
            )
        self.records_by_id[record.id] = self.read
        pictures = [self._picture(given) for given in record.pictures]
        sample = encode(record, [layout.tokens for _, layout in pictures], self.tokenizer)
        self._require_length(sample)
        self.lengths.append(sample.length)
        image_tokens = sum(sample.picture_tokens)
        self.tokens.update(
            text=len(sample.token_ids),
            image=image_tokens,
            supervised=sample.supervised_tokens,
            total=sample.length,
        )
        self.grids.update(f"{layout.rows}x{layout.cols}" for _, layout in pictures)
        return store.row_of(record, sample, pictures)

    def _picture(self, given: str) -> tuple[str, PatchLayout]:
        """A picture's path relative to the root, and its layout."""
        try:
            path = (self.root / given).resolve()
        except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a null character
            raise RecordError(
                Reason.PICTURE_UNREADABLE, "the path leads nowhere", where=given, mend="correct the path"
            ) from error
        if not path.is_relative_to(self.root):
            raise RecordError(
                Reason.PATH_OUTSIDE_ROOT,
                f"the path leads out of the image root {self.root}",
                where=given,
                mend="move the picture below the image root, or give a higher folder as --image-root",
            )
        width, height = read_size(path)
        try:
            layout = plan(width, height, self.hd_num)
        except LayoutError as error:
            raise RecordError(
                Reason.NO_LAYOUT, str(error), where=given, mend="crop the picture, or raise --hd-num"
            ) from error
        return path.relative_to(self.root).as_posix(), layout

    def _require_length(self, sample: Sample) -> None:
        if self.max_tokens is not None and sample.length > self.max_tokens:
            raise RecordError(
                Reason.TOO_LONG,
                f"{sample.length:,} tokens, {sum(sample.picture_tokens):,} of them image tokens; "
                f"the limit is {self.max_tokens:,}",
                mend="lower --hd-num, split the conversation, or raise --max-tokens",
            )


def _require_some(report: PrepareReport, first_rejects: dict[str, Reject], source: Path) -> None:
    """Raise if there is nothing to write."""
    if report.read == 0:
        raise IxtuneError("the source holds no record", where=str(source), mend="give a source with records")
    if report.accepted == 0:
        rejects = [(count, first_rejects[code]) for code, count in report.rejected_by_reason.items()]
        raise DataError(
            f"all {report.read:,} records were rejected; nothing is written",
            where=str(source),
            mend=rejects[0][1].mend,
            notes=[
                f"{count:,} {r.reason.value}, such as record {r.record}, line {r.line}: {r.found}"
                for count, r in rejects
            ],
        )


def _manifest(report: PrepareReport, preparation: _Preparation, source: Path) -> dict[str, Any]:
    return {
        "tokenizer_sha256": preparation.tokenizer.sha256,
        "hd_num": preparation.hd_num,
        "max_tokens": preparation.max_tokens,
        "image_root": str(preparation.root),
        "source": {"path": str(source.resolve()), "sha256": sha256_file(source)},
        "records": {
            "read": report.read,
            "accepted": report.accepted,
            "rejected": report.rejected,
            "rejected_by_reason": report.rejected_by_reason,
        },
        "tokens": report.tokens,
        "length": report.length,
        "grids": report.grids,
    }


def _commonest_first(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
