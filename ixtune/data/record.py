"""Record: one training example as read from a source, before tokenization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["user", "assistant", "system"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        role: The speaker; only the first turn may be the system's.
        text: The text, with `<ImageHere>` for each image, whatever placeholder the source uses.
        learn: Whether an answer is trained on; False uses it as context only.
    """

    role: Role
    text: str
    learn: bool = True


NOTES = {
    "image_first": "no placeholder: the image is put in front of the whole text, as the original does",
    "image_in_front": "no placeholder: the images are put in front of the first question",
    "no_image": "the image field is empty: the record is text only",
    "inline_image": "<img>path</img> in a question is read as an image",
    "questions_joined": "consecutive questions are joined into one turn",
    "turns_not_learned": "turns that are masked (loss, train or weight) are used as context only",
    "earlier_references": "an earlier question has several answers: only the first is used",
    "options_in_question": "multiple-choice options are written below the question",
}
"""Note codes for accepted records, with their meaning."""


@dataclass(frozen=True, slots=True)
class ImageRef:
    """A reference to an image: a path, or the content of the file.

    Attributes:
        name: Name in messages: the path as given, a member of an archive, a column.
        path: Path relative to the image root, or absolute below it.
        content: The bytes of the file if the source contains them; there is no path then.
    """

    name: str
    path: str | None = None
    content: bytes | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """A position in a source, counted from 1: a line of text, a row of a table, or a member of an archive."""

    unit: Literal["line", "row", "member"]
    at: int | str

    def __str__(self) -> str:
        """Return e.g. `line 17`."""
        return f"{self.unit} {self.at}"


@dataclass(frozen=True, slots=True)
class Record:
    """One conversation about any number of images, before tokenization.

    Attributes:
        id: Unique within a source.
        images: Images in the order of the placeholders.
        turns: The conversation.
        source: The file it was read from.
        place: Position of the record in that file.
        hd_num: Maximum number of crops per image; None for the source's.
        references: All reference answers, if the source has several.
        notes: Keys of `NOTES` that apply to the record.
    """

    id: str
    images: tuple[ImageRef, ...]
    turns: tuple[Turn, ...]
    source: str
    place: Place
    hd_num: int | None = None
    references: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
