"""One question of a benchmark file: the draft made by its reader, and the item that is asked and scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ixtune.data.record import Place
from ixtune.data.rejects import RecordError, Reject
from ixtune.data.sources.entry import Entry


@dataclass(frozen=True, slots=True)
class Item:
    """A question with its reference answers.

    Attributes:
        id: Its name, unique within the file.
        question: The full question, with its options if there are any; the images come before it.
        images: The files of its images, absolute: below the image root, or where images given as bytes are kept.
        references: All reference answers of the benchmark; for multiple choice, the letter of the option.
        options: Letter -> text for multiple choice, else empty.
        kind: The benchmark's own type of the question, "" if it has none.
        group: Id of the question regardless of the order of its options; `id` unless it is asked several times.
        source: The file it was read from.
        place: Position in that file.
        record: Its number among the entries of the file, counted from 1.
    """

    id: str
    question: str
    images: tuple[str, ...]
    references: tuple[str, ...]
    options: Mapping[str, str]
    kind: str
    group: str
    source: str
    place: Place
    record: int

    def reject(self, error: RecordError) -> Reject:
        """Return a row of rejects.jsonl for an item that fails later."""
        return reject_of(error, self.source, self.place, self.record, self.id)


@dataclass(frozen=True, slots=True)
class Items:
    """The content of a benchmark file.

    Attributes:
        items: The questions to ask, in the order of the file.
        rejects: The entries that are not valid questions.
        skipped: Entries that only repeat a question with its options in another order.
    """

    items: tuple[Item, ...]
    rejects: tuple[Reject, ...]
    skipped: int


@dataclass(frozen=True, slots=True)
class ItemDraft:
    """A question as its reader drafts it, before the images are located.

    Attributes:
        id: See `Item`.
        question: Without the options.
        images: For each image its file's content, or its possible paths, the likeliest first.
        same_as: The id of the entry whose images it shows, where it has none of its own.
        references: See `Item`.
        options: See `Item`.
        kind: See `Item`.
        group: See `Item`, "" for the id.
    """

    id: str
    question: str
    references: tuple[str, ...]
    images: tuple[bytes | tuple[str, ...], ...] = ()
    same_as: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    kind: str = ""
    group: str = ""

    def item(self, images: tuple[str, ...], entry: Entry) -> Item:
        """Return the item for this draft, given the files of its images."""
        listed = "".join(f"\n{letter}. {text}" for letter, text in self.options.items())
        return Item(
            id=self.id,
            question=self.question + listed,
            images=images,
            references=self.references,
            options=self.options,
            kind=self.kind,
            group=self.group or self.id,
            source=entry.file,
            place=entry.place,
            record=entry.number,
        )

    def rotated(self) -> list[ItemDraft]:
        """Return the draft in every rotation of its options, itself first (CircularEval)."""
        letters, texts = list(self.options), list(self.options.values())
        found = [self]
        for by in range(1, len(letters)):
            moved = {old: letters[(at + by) % len(letters)] for at, old in enumerate(letters)}
            found.append(
                replace(
                    self,
                    id=f"{self.id}+{by}",
                    group=self.group or self.id,
                    options=dict(zip(letters, texts[-by:] + texts[:-by], strict=True)),
                    references=tuple(moved[reference] for reference in self.references),
                )
            )
        return found


def reject_of(error: RecordError, source: str, place: Place | None, record: int, name: str | None) -> Reject:
    """Return a row of rejects.jsonl for a faulty entry."""
    found = f"{error.what} ({error.where})" if error.where not in (None, source) else error.what
    return Reject(source, place, record, name, error.reason, found, error.hint)
