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
    """One record that is not interpreted yet.

    Attributes:
        number: Its number among the entries of the source, counted from 1.
        file: The file it stands in, as messages shall name it.
        place: Where in that file.
        value: What was read: a JSON value, or a mapping of columns; bytes stand for an image's file.
        line: A line of JSON not decoded yet, in place of `value`: decoding is left to the worker.
        fault: Why there is neither.
        position: Bytes (or rows, where the container does not know bytes) of the source that are behind it.
    """

    number: int
    file: str
    place: Place
    value: Any = None
    line: bytes | None = None
    fault: Fault | None = None
    position: int = 0
