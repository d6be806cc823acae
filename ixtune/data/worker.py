"""The part of `prepare` that workers do: a chunk of entries -> rows of the set, rejects, and what each row costs.

Everything here depends on the entries and the job alone, so any number of workers gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ixtune.data.images.header import Header, read_header
from ixtune.data.images.image_root import inside, keep
from ixtune.data.images.pixels import Corrections, open_image
from ixtune.data.prepared import store
from ixtune.data.prepared.manifest import Options
from ixtune.data.prepared.statistics import Bill, bill_of
from ixtune.data.record import ImageRef, Place, Record
from ixtune.data.rejects import Reason, RecordError, Reject
from ixtune.data.schemas.record_reader import name_of, record_of
from ixtune.data.sources.entry import Entry
from ixtune.data.sources.source import Reading
from ixtune.data.text.template import Sample, encode
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.errors import IxtuneError
from ixtune.layout import LayoutError, PatchLayout, plan

if TYPE_CHECKING:
    import pyarrow

# as much as the largest image that is decoded at all takes without compression
_MAX_FILE_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Job:
    """How the records of one source are to be prepared.

    Attributes:
        source: Its number among the sources of the run, from 0.
        reading: What the fields of an entry mean.
        image_root: The folder that paths may not leave; None if the source can have none.
        root_index: Its number among the image roots of the set.
        hd_num: The source's own, or the run's.
        options: The run's.
        images: The folder for images that the set carries itself.
    """

    source: int
    reading: Reading
    image_root: Path | None
    root_index: int
    hd_num: int
    options: Options
    images: Path


@dataclass(frozen=True, slots=True)
class Row:
    """What the driver has to know of one row without looking into it.

    Attributes:
        number: The record's number in its source.
        id: Its id.
        file: The file it was read from, and...
        place: ...where in that.
        bill: What it costs.
        images: What its images are recognised by: image root and path.
    """

    number: int
    id: str
    file: str
    place: Place
    bill: Bill
    images: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    """What became of a chunk of entries.

    Attributes:
        batch: The rows as Arrow.
        rows: What is to be known of each of them.
        rejects: In the order of the entries.
        read: Number of entries.
        position: How far into the source they reach.
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
        task = _Task(job, self.tokenizer)
        stored, rows, rejects = [], [], []
        for entry in entries:
            name: str | None = None
            try:
                with _named(entry):
                    record = record_of(entry, job.reading)
                name = record.id
                row, bill = task.row(record)
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
            images = tuple((image["root"], image["path"]) for image in row["pictures"])
            stored.append(row)
            rows.append(Row(entry.number, record.id, entry.file, entry.place, bill, images))
        return Chunk(store.batch_of(stored), rows, rejects, len(entries), entries[-1].position)


@contextmanager
def _named(entry: Entry) -> Iterator[None]:
    """Whatever a reader did not expect is reported with its place; it is our mistake, not the data's."""
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

    def row(self, record: Record) -> tuple[dict[str, Any], Bill]:
        """The columns of a record, and what it costs."""
        options = self.job.options
        files = [self._file(image) for image in record.images]
        headers = [header for header, _, _ in files]
        hd_num = record.hd_num or self.job.hd_num
        shown = zip(record.images, headers, strict=True)
        layouts = [self._layout(image, header, hd_num) for image, header in shown]
        sample = encode(record, [layout.tokens for layout in layouts], self.tokenizer)
        lowered = False
        if options.max_tokens is not None and sample.length > options.max_tokens:
            if options.over_length == "lower":
                layouts = self._lowered(layouts, options.max_tokens - len(sample.token_ids))
                sample = replace(sample, image_tokens=tuple(layout.tokens for layout in layouts))
                lowered = True
            _require_length(sample, options.max_tokens, lowered)
        images = [
            (*self._kept(image, content, path), layout)
            for image, (_, path, content), layout in zip(record.images, files, layouts, strict=True)
        ]
        bill = bill_of(
            len(sample.token_ids),
            sample.supervised_tokens,
            layouts,
            [note for header in headers for note in header.notes],
            lowered,
            options.upscale,
        )
        return store.row_of(record, sample, images), bill

    def _file(self, image: ImageRef) -> tuple[Header, str, bytes | None]:
        """An image's header, its path relative to the image root, and its content if the set is to carry it."""
        corrections = Corrections.of(self.job.options.corrections)
        path, content, name = "", image.content, image.path or image.name
        source: Path | bytes
        if image.path is not None:
            path, source = self._inside(image.path)
        else:
            assert content is not None
            source = content
        header = read_header(source, corrections, name=name)
        if self.job.options.verify:
            open_image(source, corrections, name)
        if isinstance(source, Path) and self.job.options.embed_images:
            content = _content(source, name)
        return header, path, content

    def _inside(self, given: str) -> tuple[str, Path]:
        """A path as given -> relative to the image root, and the file."""
        root = self.job.image_root
        if root is None:
            raise RecordError(
                Reason.PATH_OUTSIDE_ROOT,
                "the source gives a path, but has no folder of its own",
                where=given,
                hint="give the folder of the images as --image-root",
            )
        return inside(root, given)

    def _layout(self, image: ImageRef, header: Header, hd_num: int) -> PatchLayout:
        try:
            return plan(header.width, header.height, hd_num, upscale=self.job.options.upscale)
        except LayoutError as error:
            raise RecordError(
                Reason.NO_LAYOUT,
                str(error),
                where=image.path or image.name,
                hint="crop the image, or raise --hd-num",
            ) from error

    def _lowered(self, layouts: Sequence[PatchLayout], room: int) -> list[PatchLayout]:
        """The layouts with the hd_num of the costliest image lowered, again and again, until they fit or cannot."""
        lowered = list(layouts)
        while sum(layout.tokens for layout in lowered) > room:
            able = [index for index, layout in enumerate(lowered) if layout.crops > 1]
            if not able:
                break
            index = max(able, key=lambda index: (lowered[index].tokens, -index))
            one = lowered[index]
            try:
                lowered[index] = plan(one.width, one.height, one.crops - 1, upscale=one.upscale)
            except LayoutError:
                break
        return lowered

    def _kept(self, image: ImageRef, content: bytes | None, path: str) -> tuple[int, str]:
        """Image root and path under which the set knows an image."""
        if content is None:
            return self.job.root_index, path
        return store.OWN_ROOT, f"{store.IMAGES}/{keep(self.job.images, content)}"


def _content(file: Path, name: str) -> bytes:
    """The file of an image whose header is good, as it is."""
    if file.stat().st_size > _MAX_FILE_BYTES:
        raise RecordError(
            Reason.PICTURE_TOO_LARGE,
            f"a file of more than {_MAX_FILE_BYTES >> 20} MiB",
            where=name,
            hint="save it with compression",
        )
    return file.read_bytes()


def _require_length(sample: Sample, max_tokens: int, lowered: bool) -> None:
    if sample.length > max_tokens:
        image = sum(sample.image_tokens)
        raise RecordError(
            Reason.TOO_LONG,
            f"{sample.length:,} tokens, {image:,} of them image tokens{' at their least' if lowered else ''}; "
            f"the limit is {max_tokens:,}",
            hint="split the conversation, or raise --max-tokens"
            if lowered
            else "lower --hd-num (--over-length lower does it for such records), or raise --max-tokens",
        )
