"""One example as it was read, before any tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["user", "assistant", "system"]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says.

    Attributes:
        role: Who speaks; a system turn may only be the first.
        text: The words, with `<ImageHere>` where an image stands, whatever the source writes for it.
    """

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image as its source gives it: a path, or the file's content.

    Attributes:
        name: What to call it in messages: the path as given, a member of an archive, a column.
        path: Relative to the image root, or absolute below it.
        content: The bytes of the file, where the source carries them itself; then there is no path.
    """

    name: str
    path: str | None = None
    content: bytes | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a source something stands, counted from 1: a line of text, a row of a table, a member of an archive."""

    unit: Literal["line", "row", "member"]
    at: int | str

    def __str__(self) -> str:
        """Such as `line 17`."""
        return f"{self.unit} {self.at}"


@dataclass(frozen=True, slots=True)
class Record:
    """One conversation about images, or about none.

    Attributes:
        id: Its name, unique within a source.
        images: In the order of the placeholders.
        turns: The conversation.
        source: The file it was read from.
        place: Where in that file it begins.
        hd_num: The most crops an image of this record may fill; None for the source's.
        references: All answers that count as right, where the source gives several; the first is trained on.
    """

    id: str
    images: tuple[ImageRef, ...]
    turns: tuple[Turn, ...]
    source: str
    place: Place
    hd_num: int | None = None
    references: tuple[str, ...] = ()
