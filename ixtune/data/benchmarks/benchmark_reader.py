"""Convert the entries of any benchmark file to items and rejects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ixtune.data.benchmarks.item import Item, ItemDraft, Items, reject_of
from ixtune.data.benchmarks.values import NO_ANSWERS, NoAnswer
from ixtune.data.containers.json_text import decoded
from ixtune.data.images.documents import split_pages
from ixtune.data.images.header import read_header
from ixtune.data.images.image_paths import is_file_below, locate
from ixtune.data.images.image_store import keep
from ixtune.data.images.pixels import Corrections
from ixtune.data.rejects import Reason, RecordError, Reject
from ixtune.data.schemas.fields import shown
from ixtune.data.sources.entry import Entry
from ixtune.errors import DataError, IxtuneError

_SHOWN_CHARACTERS = 100
# the layout decides whether an unusual image is accepted; here it only has to be an image
_ANY = Corrections(depth=True, first_frame=True)


def read_items(
    entries: Iterable[Entry],
    draft_of: Callable[[Mapping[str, Any], Entry], ItemDraft],
    path: Path,
    root: Path,
    image_folder: Path,
    circular: bool,
) -> Items:
    """Implement `read`; `root` is a resolved path.

    Raises:
        OSError: A file cannot be read or written.
        IxtuneError: There is no entry.
        DataError: No entry has an answer.
    """
    drafts: list[tuple[Entry, ItemDraft, tuple[str, ...]]] = []
    rejects: list[Reject] = []
    shown_by: dict[str, tuple[str, ...]] = {}
    unanswered = 0
    for entry in entries:
        name = None
        try:
            draft = draft_of(_fields(entry), entry)
            name = draft.id
            if name in shown_by:
                raise RecordError(Reason.DUPLICATE_ID, f"the id {shown(name)} occurs twice", hint="give it another id")
            shown_by[name] = tuple(_file(image, root, image_folder) for image in draft.images)
            # the bytes are on the disk now: do not keep them in memory too
            drafts.append((Entry(entry.number, entry.file, entry.place), replace(draft, images=()), shown_by[name]))
        except RecordError as error:
            unanswered += isinstance(error, NoAnswer)
            rejects.append(reject_of(error, entry.file, entry.place, entry.number, name))
    _require_some(len(drafts) + len(rejects), unanswered, path)

    groups: dict[str, int] = {}
    for _, draft, _ in drafts:
        groups[draft.group or draft.id] = groups.get(draft.group or draft.id, 0) + 1
    items: list[Item] = []
    skipped = 0
    for entry, draft, images in drafts:
        group = draft.group or draft.id
        if not circular and draft.id != group:
            skipped += 1
            continue
        try:
            images = images if draft.same_as is None else _shared(draft.same_as, shown_by)
        except RecordError as error:
            rejects.append(reject_of(error, entry.file, entry.place, entry.number, draft.id))
            continue
        # a file that already contains the other orders is used as it is
        orders = draft.rotated() if circular and groups[group] == 1 else [draft]
        items += [one.item(images, entry) for one in orders]
    return Items(tuple(items), tuple(sorted(rejects, key=lambda reject: reject.record)), skipped)


def _fields(entry: Entry) -> Mapping[str, Any]:
    value, fault = decoded(entry)
    if fault is not None:
        raise RecordError(fault.reason, fault.found, hint=fault.hint)
    if not isinstance(value, Mapping):
        raise RecordError(
            Reason.NOT_A_RECORD, f"the entry is {shown(value)}", hint="each question is an object with named fields"
        )
    return value


def _file(image: bytes | tuple[str, ...], root: Path, images: Path) -> str:
    """Return the file of an image: its bytes, stored, or else the first of its paths that exists."""
    if isinstance(image, bytes):
        read_header(image, _ANY, name="the image in the file")
        return _kept(image, images)
    for path in image:
        try:
            name, pages = (path, None) if is_file_below(root, path) else split_pages(path)
            file = locate(root, name).file
            if file.is_file():
                return f"{file}{pages or ''}"
        except RecordError as error:
            if error.reason is not Reason.PICTURE_MISSING:
                raise
        except OSError as error:  # the name is too long, or the folder is not accessible
            raise RecordError(
                Reason.PICTURE_UNREADABLE,
                f"the image path cannot be checked: {(error.strerror or str(error)).lower()}",
                where=image[0][:_SHOWN_CHARACTERS],
                hint="correct the path, or the permissions of its folder",
            ) from error
    raise RecordError(
        Reason.PICTURE_MISSING,
        f"there is no such image below {root}",
        where=", ".join(image),
        hint="pass the folder that the images were unpacked into with --image-root",
    )


def _kept(content: bytes, images: Path) -> str:
    try:
        return str((images / keep(images, content)).resolve())
    except OSError as error:
        raise IxtuneError(
            f"an image of the file cannot be written: {error.strerror or error}",
            where=str(images),
            hint="make room there, or pass another folder",
        ) from error


def _shared(name: str, shown_by: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the images of the entry that this one refers to."""
    if not shown_by.get(name):
        raise RecordError(
            Reason.PICTURE_MISSING,
            f"the image is that of question {shown(name)}, which has none or was rejected",
            hint="download the table again; it may have been truncated",
        )
    return shown_by[name]


def _require_some(entries: int, unanswered: int, path: Path) -> None:
    if not entries:
        raise IxtuneError("the file holds no question", where=str(path), hint="pass a file with questions")
    if unanswered == entries:
        raise DataError(
            f"none of {entries:,} questions has an answer to compare with", where=str(path), hint=NO_ANSWERS
        )
