"""One example as it was read, before any tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["user", "assistant", "system"]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says.

    Attributes:
        role: Who speaks. `system` is read so that it can be refused with its own reason.
        text: The words, with `<ImageHere>` where a picture stands.
    """

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Record:
    """One conversation about pictures, or about none.

    Attributes:
        id: Its name, unique within a source.
        pictures: Paths as the source gives them, in the order of the placeholders.
        turns: The conversation.
        source: The file it was read from.
        line: The line in that file on which it begins, counted from 1.
    """

    id: str
    pictures: tuple[str, ...]
    turns: tuple[Turn, ...]
    source: str
    line: int
