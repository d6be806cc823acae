"""Entry: one record as its container yields it, before its fields are interpreted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ixtune.data.record import Place
from ixtune.data.rejects import Reason

MAX_ENTRY_BYTES = 32 << 20
"""A larger record is rejected unread. (A 4K page as PNG in a `data:` URI takes about 20 MB.)"""


@dataclass(frozen=True, slots=True)
class Fault:
    """The reason why an entry could not be read; becomes a reject."""

    reason: Reason
    found: str
    hint: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One record, not yet interpreted.

    Attributes:
        number: Its number among the entries of the source, counted from 1.
        file: The file that contains it, as named in messages.
        place: Position in that file.
        value: The value read: a JSON value, or a mapping of columns; bytes are the content of an image file.
        line: A line of undecoded JSON instead of `value`: the worker decodes it.
        fault: The reason why there is neither.
        position: Bytes (or rows, where the container does not know bytes) of the source read so far.
    """

    number: int
    file: str
    place: Place
    value: Any = None
    line: bytes | None = None
    fault: Fault | None = None
    position: int = 0
