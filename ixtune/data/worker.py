"""Prepare chunks of entries in a worker: return rows of the set, rejects, and the token cost of each row.

The result depends only on the entries and the job, so any number of workers gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ixtune.data.image_reader import ImageFile, ImageReader, PdfPage, with_pages
from ixtune.data.images.pixels import Corrections
from ixtune.data.prepared import store
from ixtune.data.prepared.manifest import PrepareOptions
from ixtune.data.prepared.statistics import TokenCounts, token_counts_of
from ixtune.data.record import ImageRef, Place, Record
from ixtune.data.rejects import Reason, RecordError, Reject
from ixtune.data.remote_files import RemoteFolder
from ixtune.data.schemas.record_reader import name_of, record_of
from ixtune.data.sources.entry import Entry
from ixtune.data.sources.source import Reading
from ixtune.data.text.template import Sample, encode
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.errors import IxtuneError
from ixtune.layout import PatchLayout

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True, slots=True)
class Job:
    """Settings for preparing the records of one source.

    Attributes:
        source: Index of the source in the run.
        reading: Interpretation of the fields of an entry.
        image_root: The folder that paths must not leave; None if the source can have none.
        root_index: Index of the image root in the set.
        hd_num: The source's own, or the run's.
        options: The run's.
        images: The folder for images that the set contains.
        remote_root: The image root in an object store, instead of `image_root`.
    """

    source: int
    reading: Reading
    image_root: Path | None
    root_index: int
    hd_num: int
    options: PrepareOptions
    images: Path
    remote_root: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """Summary of one row for the driver, which does not decode the row itself.

    Attributes:
        number: The record's number in its source.
        id: Its id.
        file: The file it was read from.
        place: Its position in that file.
        counts: Its token counts.
        images: For each image, the index of its image root, its path, its size in bytes and its content hash.
        contents: For each image, the hash of its file; for a PDF page, that of the document and page too, because the
            page may occur in several sizes.
        near: For each image, its perceptual hash, if near-duplicates are searched for.
    """

    number: int
    id: str
    file: str
    place: Place
    counts: TokenCounts
    images: tuple[tuple[int, str, int, str], ...]
    contents: tuple[str, ...]
    near: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Result of preparing a chunk of entries.

    Attributes:
        batch: The rows as Arrow.
        rows: Summary of each row.
        rejects: In the order of the entries.
        read: Number of entries.
        position: Position in the source after the last entry.
    """

    batch: pyarrow.RecordBatch
    rows: list[Row]
    rejects: list[Reject]
    read: int
    position: int


class Work:
    """Prepares chunks; one for each worker.

    Args:
        tokenizer: The tokenizer.model of the base.
    """

    def __init__(self, tokenizer: Path) -> None:
        self.tokenizer = Tokenizer(tokenizer)

    def __call__(self, job: Job, entries: Sequence[Entry]) -> Chunk:
        """Prepare some entries of one source."""
        task = _Task(job, self.tokenizer, _images_of(job))
        if job.remote_root is not None:
            task.images.read_ahead(_images_in(entries, job.reading))
        stored, rows, rejects = [], [], []
        for entry in entries:
            name: str | None = None
            try:
                with _named(entry):
                    record = record_of(entry, job.reading)
                name = record.id
                row, counts, files = task.row(record)
                near = task.images.near(row["pictures"]) if job.options.near_duplicates else ()
            except RecordError as error:
                rejects.append(
                    Reject(
                        entry.file,
                        entry.place,
                        entry.number,
                        name or name_of(entry, job.reading),
                        error.reason,
                        str(error),
                        error.hint,
                    )
                )
                continue
            images = tuple(
                (image["root"], image["path"], image["bytes"], image["content"]) for image in row["pictures"]
            )
            contents = dict.fromkeys([*(image["content"] for image in row["pictures"]), *(file.key for file in files)])
            stored.append(row)
            rows.append(Row(entry.number, record.id, entry.file, entry.place, counts, images, tuple(contents), near))
        return Chunk(store.batch_of(stored), rows, rejects, len(entries), entries[-1].position)


@contextmanager
def _named(entry: Entry) -> Iterator[None]:
    """Report an unexpected exception of a reader with its place in the source, as an internal error."""
    try:
        yield
    except (RecordError, MemoryError):
        raise
    except Exception as error:
        raise IxtuneError(
            f"internal error while reading a record: {type(error).__name__}: {error}",
            where=f"{entry.file}, {entry.place}",
            hint="run it again with --debug for the traceback, and report it with the record",
        ) from error


@dataclass(slots=True)
class _Task:
    """Prepares the records of one source."""

    job: Job
    tokenizer: Tokenizer
    images: ImageReader

    def row(self, record: Record) -> tuple[dict[str, Any], TokenCounts, list[ImageFile | PdfPage]]:
        """Return the columns of a record, its token cost, and its images."""
        options = self.job.options
        shown = [self.images.read(image) for image in record.images]
        record = replace(record, turns=with_pages(record.turns, [len(pages) for pages in shown]))
        files = [file for pages in shown for file in pages]
        hd_num = record.hd_num or self.job.hd_num
        member = options.member
        layouts = [file.layout(hd_num, upscale=options.upscale, member=member) for file in files]
        sample = encode(record, [layout.tokens for layout in layouts], self.tokenizer, member)
        lowered = False
        if options.max_tokens is not None and sample.length > options.max_tokens:
            if options.over_length == "lower":
                layouts = self._lowered(files, layouts, options.max_tokens - len(sample.token_ids))
                sample = replace(sample, image_tokens=tuple(layout.tokens for layout in layouts))
                lowered = True
            _require_length(sample, options.max_tokens, lowered)
        images = [self.images.store(file, layout) for file, layout in zip(files, layouts, strict=True)]
        counts = token_counts_of(
            len(sample.token_ids),
            sample.supervised_tokens,
            layouts,
            [*record.notes, *(note for file in files for note in file.notes)],
            lowered,
            options.upscale,
        )
        return store.row_of(record, sample, images), counts, files

    def _lowered(
        self, files: Sequence[ImageFile | PdfPage], layouts: Sequence[PatchLayout], room: int
    ) -> list[PatchLayout]:
        """Lower the hd_num of the costliest image repeatedly until the layouts fit or cannot shrink further."""
        lowered = list(layouts)
        while sum(layout.tokens for layout in lowered) > room:
            able = [index for index, layout in enumerate(lowered) if layout.crops > 1]
            if not able:
                break
            index = max(able, key=lambda index: (lowered[index].tokens, -index))
            one = lowered[index]
            try:
                lowered[index] = files[index].layout(one.crops - 1, upscale=one.upscale, member=one.member)
            except RecordError:
                break
        return lowered


def _images_of(job: Job) -> ImageReader:
    options = job.options
    return ImageReader(
        job.image_root,
        job.root_index,
        job.images,
        corrections=Corrections.of(options.corrections),
        verify=options.verify,
        embed=options.embed_images,
        all_pages=options.pages == "all",
        dpi=options.dpi,
        remote=RemoteFolder(job.remote_root) if job.remote_root is not None else None,
    )


def _images_in(entries: Sequence[Entry], reading: Reading) -> Iterator[ImageRef]:
    """Yield the images of entries that can be read."""
    for entry in entries:
        with suppress(RecordError):
            yield from record_of(entry, reading).images


def _require_length(sample: Sample, max_tokens: int, lowered: bool) -> None:
    if sample.length > max_tokens:
        image = sum(sample.image_tokens)
        raise RecordError(
            Reason.TOO_LONG,
            f"{sample.length:,} tokens, {image:,} of them image tokens{' at the lowest hd_num' if lowered else ''}; "
            f"the limit is {max_tokens:,}",
            hint="split the conversation, or raise --max-tokens"
            if lowered
            else "lower --hd-num (--over-length lower does it for such records), or raise --max-tokens",
        )
