"""A request in the engine, the pieces of its answer, and the engine's limits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from ixtune.answering.sampler import TokenScores
from ixtune.serving.prompts import Asked


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the engine.

    Attributes:
        rows: Answers generated at once.
        waiting: Requests that may wait.
        running_tokens: Tokens of all running answers, prompts and prefixes included; their keys and values take memory.
        prefix_bytes: Bytes of kept prefixes.
        vector_bytes: Bytes of kept image vectors, in main memory.
        waiting_bytes: Bytes of the images of waiting requests, in main memory.
    """

    rows: int = 8
    waiting: int = 64
    running_tokens: int = 65_536
    prefix_bytes: int = 1 << 30
    vector_bytes: int = 1 << 30
    waiting_bytes: int = 2 << 30


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of an answer.

    Attributes:
        choice: Number of the answer.
        text: Text that is certain now.
        scores: Log-probabilities of the tokens since the last piece.
        finish: `stop` or `length` with the last piece; None before.
        tokens: Tokens generated so far.
        cached_tokens: Prompt tokens that were found in the cache.
    """

    choice: int
    text: str
    scores: tuple[TokenScores, ...]
    finish: Literal["stop", "length"] | None
    tokens: int
    cached_tokens: int


class Full(Exception):
    """The queue is full."""


class Stopped(Exception):
    """The engine no longer accepts requests."""


Emit = Callable[[Piece | Exception], None]


@dataclass(eq=False)
class Job:
    """A request in the engine.

    Attributes:
        asked: What to answer.
        emit: Receives pieces, or an exception that ends the job; called in the engine's thread.
        streams: Send pieces as they come; else one for each answer.
        cancelled: Set to end it: the client no longer waits for the answer.
        since: Time of arrival.
    """

    asked: Asked
    emit: Emit
    streams: bool = True
    cancelled: threading.Event = field(default_factory=threading.Event)
    since: float = field(default_factory=time.monotonic)

    @property
    def tokens(self) -> int:
        """Upper bound of the tokens whose keys and values it keeps in memory."""
        return len(self.asked.ids) + self.asked.choices * self.asked.settings.max_new_tokens
