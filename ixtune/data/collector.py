"""Collect the results of `prepare`: count records and rejects of each source, then write the prepared sets."""

from __future__ import annotations

import os
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ixtune.data.counted_source import CountedSource
from ixtune.data.images.near_images import NearImages
from ixtune.data.prepared import selection, store
from ixtune.data.prepared.manifest import SPLIT_KIND, Example, PrepareOptions, describe_root, write_manifest
from ixtune.data.prepared.shared_images import ExcludedImages
from ixtune.data.prepared.statistics import Statistics, TokenCounts, commonest_first
from ixtune.data.rejects import Reason, Reject
from ixtune.data.sources.entry import Entry
from ixtune.data.sources.source import REPEATED_IDS
from ixtune.data.sources.source_loader import Opened
from ixtune.data.worker import Chunk, Job, Row
from ixtune.errors import UsageError
from ixtune.files import atomic_write_json

if TYPE_CHECKING:
    import pyarrow

SPLITS = ("train", "validation")
_STAGED = ".staged"
_CHUNK_ENTRIES = 256
# decoding takes a hundred times longer than reading a header, so smaller chunks keep all workers busy to the end
_CHUNK_ENTRIES_VERIFIED = 64
_CHUNK_BYTES = 16 << 20
# limit the rows in memory, even when one record is drawn a million times
_ROWS_PER_BATCH = 1000


class Collector:
    """Counts the chunks as they arrive and writes the sets at the end.

    Args:
        opened: The sources.
        options: PrepareOptions of the run.
        folder: Output folder.
        excluded: Images that must not appear in any record.
    """

    def __init__(
        self, opened: Sequence[Opened], options: PrepareOptions, folder: Path, excluded: ExcludedImages | None = None
    ) -> None:
        self.options, self.folder = options, folder
        self.excluded = excluded
        self.near = NearImages()
        self.sources = [CountedSource(one) for one in opened]
        # images of a local copy of a remote source are embedded, and the copy is removed
        here = [one for one in opened if one.source.origin is None]
        roots = sorted({str(one.image_root) for one in here if one.image_root is not None})
        self.image_roots = [".", *roots]
        self.rejected: Counter[str] = Counter()
        self.first_rejects: dict[str, Reject] = {}
        self.sets: dict[str, Statistics] = {"": Statistics()}
        weighted = any(one.source.weight is not None or one.source.count is not None for one in opened)
        # drawing and splitting need all records: until then the rows go to a staging file
        self.selects = weighted or options.val_fraction > 0
        self.groups = selection.Groups(options.seed)
        self.counts: list[TokenCounts] = []
        self.source_of_row = array("H")
        self.own_of_row: list[tuple[str, ...]] = []
        self.own_images: dict[str, int] = {}
        self.examples: dict[int, Example] = {}

    @property
    def read(self) -> int:
        """Number of entries read so far, over all sources."""
        return sum(source.read for source in self.sources)

    @property
    def position(self) -> int:
        """Read position over all sources, in the units of their totals."""
        return sum(source.position for source in self.sources)

    @property
    def rejected_by_reason(self) -> dict[str, int]:
        """Number of rejects so far by reason, the most common first."""
        return commonest_first(self.rejected)

    def writer(self) -> store.Writer:
        """Return the writer for rows during reading: the set's own, or one for a staging file."""
        if not self.selects:
            return store.Writer(self.folder)
        (self.folder / _STAGED).mkdir()
        return store.Writer(self.folder / _STAGED)

    def tasks(self) -> Iterator[tuple[Job, list[Entry]]]:
        """Yield the entries of all sources in chunks; chunk boundaries depend only on the entries."""
        most = _CHUNK_ENTRIES_VERIFIED if self.options.verify else _CHUNK_ENTRIES
        for index, source in enumerate(self.sources):
            job = self._job(index)
            chunk: list[Entry] = []
            size = 0
            for entry in source.opened.entries():
                chunk.append(entry)
                size += _size(entry.value) if entry.line is None else len(entry.line)
                if len(chunk) == most or size >= _CHUNK_BYTES:
                    yield job, chunk
                    chunk, size = [], 0
            if chunk:
                yield job, chunk

    def take(self, job: Job, chunk: Chunk) -> tuple[pyarrow.RecordBatch, list[Reject]]:
        """Count a chunk; return its rows without duplicates, and its rejects in record order."""
        source = self.sources[job.source]
        rejects, kept = list(chunk.rejects), []
        for at, row in enumerate(chunk.rows):
            if self.excluded is not None and self.excluded.finds(row.contents, row.near):
                rejects.append(self._excluded(row))
                continue
            first = source.numbers_by_id.setdefault(row.id, row.number)
            if first != row.number and source.opened.schema not in REPEATED_IDS:
                rejects.append(_duplicate(row, first))
                continue
            kept.append(at)
            source.with_images += bool(row.images)
            self._keep(job.source, row)
        rejects.sort(key=lambda reject: reject.record)
        for reject in rejects:
            self.rejected[reject.reason.value] += 1
            self.first_rejects.setdefault(reject.reason.value, reject)
        source.read += chunk.read
        source.accepted += len(kept)
        source.position = chunk.position
        if len(kept) == len(chunk.rows):
            return chunk.batch, rejects
        import pyarrow

        return chunk.batch.take(pyarrow.array(kept, pyarrow.int64())), rejects  # an empty list would have no type

    def finish(self, tokenizer_sha256: str) -> None:
        """Draw and split the rows and write the manifests; asserts accepted + rejected = read."""
        accepted = sum(source.accepted for source in self.sources)
        if accepted + self.rejected.total() != self.read:
            raise AssertionError(f"{accepted} accepted + {self.rejected.total()} rejected != {self.read} read")
        if self.selects:
            self._select()
        else:
            for source in self.sources:
                source.rows = source.accepted
        self._place_images()
        content = self._content(tokenizer_sha256)
        for name, statistics in self.sets.items():
            records = {"records": content["records"] | {"rows": statistics.rows}, "split": name or None}
            roots = {"image_roots": self._described_roots(self.folder / name)}
            write_manifest(self.folder / name, self.options, content | roots | records | statistics.as_manifest())
        if self.options.val_fraction:
            atomic_write_json(self.folder / "dataset_dict.json", {"splits": list(SPLITS)})
            write_manifest(self.folder, self.options, content, SPLIT_KIND)

    def _job(self, index: int) -> Job:
        opened = self.sources[index].opened
        hd_num = opened.source.hd_num or self.options.hd_num
        assert hd_num is not None  # prepare() has checked this
        root = opened.image_root
        return Job(
            source=index,
            reading=replace(opened.reading, image_first=self.options.member.image_first),
            image_root=root,
            root_index=self.image_roots.index(str(root)) if str(root) in self.image_roots else store.OWN_ROOT,
            hd_num=hd_num,
            options=self.options,
            remote_root=opened.source.remote_root,
            images=self.folder / store.IMAGES,
        )

    def _keep(self, index: int, row: Row) -> None:
        """Count an accepted row, or store what is needed to count it after drawing and splitting."""
        own = tuple(path for root, path, _, _ in row.images if root == store.OWN_ROOT)
        for root, path, size, content in row.images:
            if root not in self.examples:
                self.examples[root] = Example(path, size, content)
        if not self.selects:
            self.sets[""].add(row.counts)
            self.own_images.update(dict.fromkeys(own, 0))
            return
        self.counts.append(row.counts)
        self.own_of_row.append(own)
        self.source_of_row.append(index)
        if self.options.val_fraction:
            near = {f"near {value:x}" for one in row.near for value in self.near.add(one)}
            self.groups.add([*row.contents, *sorted(near)], f"{index} {row.id}")

    def _excluded(self, row: Row) -> Reject:
        return Reject(
            row.file,
            row.place,
            row.number,
            row.id,
            Reason.IN_EXCLUDED_SET,
            f"it shows an image of {' or '.join(self.options.exclude)}",
            "nothing to do: --exclude leaves such records out",
        )

    def _select(self) -> None:
        """Decide how often each row appears in which split, and write the splits."""
        times, sides = array("l", [1]) * len(self.counts), bytearray(len(self.counts))
        if self.options.val_fraction:
            sides = self.groups.validation(self.options.val_fraction)
        for index, source in enumerate(self.sources):
            self._draw(index, source, times, sides)
        names = SPLITS if self.options.val_fraction else ("",)
        self.sets = {name: Statistics() for name in names}
        for at, counts in enumerate(self.counts):
            if times[at]:
                self.sets[names[sides[at]]].add(counts, times[at])
                self.sources[self.source_of_row[at]].rows += times[at]
                self.own_images.update(dict.fromkeys(self.own_of_row[at], sides[at]))
        for name in names:
            (self.folder / name).mkdir(exist_ok=True)
        _distribute(self.folder / _STAGED, [self.folder / name for name in names], times, sides)
        shutil.rmtree(self.folder / _STAGED)

    def _draw(self, index: int, source: CountedSource, times: array[int], sides: bytearray) -> None:
        """Set how often each training row of one source appears in the set."""
        weight, count = source.opened.source.weight, source.opened.source.count
        if weight is None and count is None:
            return
        rows = [at for at, owner in enumerate(self.source_of_row) if owner == index and not sides[at]]
        total = count if count is not None else round((weight or 0) * len(rows))
        if rows and not total:
            raise UsageError(
                f"none of the {len(rows):,} records of this source would be drawn",
                where=source.opened.source.name,
                hint="raise its weight, or remove the source",
            )
        for at, drawn in zip(rows, selection.draw(len(rows), total, f"{self.options.seed} {index}"), strict=True):
            times[at] = drawn

    def _place_images(self) -> None:
        """Move the images to the sets whose rows show them; delete the images of records that were not drawn."""
        images = self.folder / store.IMAGES
        if not images.is_dir():
            return
        spare = self.folder / ".spare"
        os.rename(images, spare)
        homes = [self.folder / name for name in self.sets]
        for path, side in self.own_images.items():
            target = homes[side] / path
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(spare / Path(path).relative_to(store.IMAGES), target)
        shutil.rmtree(spare)

    def _content(self, tokenizer_sha256: str) -> dict[str, Any]:
        """Return the content that all manifests of the run share."""
        return {
            "tokenizer_sha256": tokenizer_sha256,
            "image_roots": self._described_roots(self.folder),
            "sources": [source.described(self.options.hd_num) for source in self.sources],
            "records": {
                "read": self.read,
                "accepted": sum(source.accepted for source in self.sources),
                "rejected": self.rejected.total(),
                "rejected_by_reason": self.rejected_by_reason,
                "rows": sum(source.rows for source in self.sources),
            },
        }

    def _described_roots(self, folder: Path) -> list[Any]:
        """Return the image roots for the manifest of a set in `folder`, a temporary sibling of the final folder."""
        own, *others = self.image_roots
        found = [describe_root(Path(root), folder, self.examples.get(at)) for at, root in enumerate(others, start=1)]
        return [own, *found]


def _distribute(staged: Path, folders: Sequence[Path], times: array[int], sides: bytearray) -> None:
    """Copy each staged row `times[row]` times to the set with index `sides[row]`."""
    import pyarrow

    with ExitStack() as stack:
        writers = [stack.enter_context(store.Writer(folder)) for folder in folders]
        reader = stack.enter_context(pyarrow.ipc.open_stream(stack.enter_context(open(staged / store.ARROW, "rb"))))
        start = 0
        for batch in reader:
            at = range(start, start + batch.num_rows)
            for side, writer in enumerate(writers):
                indices = [row - start for row in at if sides[row] == side for _ in range(times[row])]
                for first in range(0, len(indices), _ROWS_PER_BATCH):
                    writer.add_batch(batch.take(pyarrow.array(indices[first : first + _ROWS_PER_BATCH])))
            start = at.stop


def _duplicate(row: Row, first: int) -> Reject:
    return Reject(
        row.file,
        row.place,
        row.number,
        row.id,
        Reason.DUPLICATE_ID,
        f"record {first} has the id {row.id} too",
        "give every record its own id, or ignore the ids with --columns id=",
    )


def _size(value: Any) -> int:
    """Estimate the size of a value in bytes; most of it is images."""
    if isinstance(value, (bytes, str)):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, (list, tuple)) else 8
