"""Generate answers in one thread that owns the model: batches that requests join and leave, one model at a time.

A batch holds answers of one model. A request for the same model joins it at the next token. As soon as a request for
another model has waited for `SWITCH_SECONDS`, nothing joins any more, and the models are switched once the batch is
empty, so that none waits forever.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ixtune.answering.running_batch import Row, RunningBatch
from ixtune.answering.sampler import Sampler, TokenScores
from ixtune.answering.text_stream import TextStream
from ixtune.model.prefix_cache import PrefixCache, prefix_length
from ixtune.model.shared_prefix import Prefix
from ixtune.serving.models import Models
from ixtune.serving.prompts import Asked
from ixtune.serving.vectors import VectorCache

LOG = logging.getLogger("ixtune.serving")
SWITCH_SECONDS = 2.0
"""Time that a request for another model waits at most before others stop joining the batch."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the engine.

    Attributes:
        rows: Answers generated at once.
        waiting: Requests that may wait.
        running_tokens: Tokens of all running answers, prompts and prefixes included, whose keys and values are held.
        prefix_bytes: Bytes of kept prefixes.
        vector_bytes: Bytes of kept image vectors, in main memory.
    """

    rows: int = 8
    waiting: int = 64
    running_tokens: int = 65_536
    prefix_bytes: int = 1 << 30
    vector_bytes: int = 1 << 30


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
    """No more requests may wait."""


class Stopped(Exception):
    """The engine takes no requests any more."""


Emit = Callable[[Piece | Exception], None]


@dataclass(eq=False)
class Job:
    """A request in the engine.

    Attributes:
        asked: What to answer.
        emit: Receives pieces, or an exception that ends the job; called in the engine's thread.
        cancelled: Set to end it: nobody waits for the answer any more.
        since: Time of arrival.
    """

    asked: Asked
    emit: Emit
    cancelled: threading.Event = field(default_factory=threading.Event)
    since: float = field(default_factory=time.monotonic)


@dataclass(eq=False)
class _Answer:
    """An answer in the making."""

    job: Job
    choice: int
    row: Row
    text: TextStream
    cached: int
    seen: int = 0  # tokens whose text has been read
    sent_scores: int = 0


class Engine:
    """Answers jobs in a thread of its own.

    Attributes:
        models: The loaded models.
        limits: Bounds.
        prefixes: Keys and values of prompt beginnings that end with an image.
        vectors: Image vectors, shared by the models that may.
        switches: How often another model was made active.
    """

    def __init__(self, models: Models, limits: Limits) -> None:
        """Prepare; `start` starts the thread."""
        self.models, self.limits = models, limits
        self.prefixes = PrefixCache(limits.prefix_bytes)
        self.vectors = VectorCache(models.base_model, limits.vector_bytes)
        self.switches = 0
        self._active: str | None = None
        self._waiting: list[Job] = []
        self._running: list[_Answer] = []
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="ixtune-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Finish what runs and waits, and end the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, job: Job) -> None:
        """Take a job.

        Raises:
            Full: Too many are waiting.
            Stopped: The engine is ending.
        """
        with self._wake:
            if self._stopping or not self._thread.is_alive():
                raise Stopped
            self._waiting = [one for one in self._waiting if not one.cancelled.is_set()]
            if len(self._waiting) >= self.limits.waiting:
                raise Full
            self._waiting.append(job)
            self._wake.notify()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def counts(self) -> tuple[int, int]:
        """Number of waiting requests and of running answers."""
        return len(self._waiting), len(self._running)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._stopping:
                    self._wake.wait()
                self._drop_cancelled()
                if not self._waiting:
                    if self._stopping:
                        return
                    continue
                name = self._waiting[0].asked.model.name
            if name != self._active:
                self._active, self.switches = name, self.switches + 1
            try:
                with self.models.use(name) as network:
                    self._serve(name, RunningBatch(network, self.models.tokenizer.pad_id))
            except Exception as error:
                self._fail(error)

    def _serve(self, name: str, batch: RunningBatch) -> None:
        """Answer jobs for one model until there is none, or another model's turn has come."""
        while True:
            self._leave_cancelled(batch)
            new = self._take(name)
            if new:
                self._start(new, batch)
            if not batch.rows:
                return
            self._report(batch)
            if batch.rows:
                batch.step()
                self._report(batch)

    def _drop_cancelled(self) -> None:
        self._waiting = [job for job in self._waiting if not job.cancelled.is_set()]

    def _leave_cancelled(self, batch: RunningBatch) -> None:
        gone = [one for one in self._running if one.job.cancelled.is_set()]
        self._remove(gone, batch)

    def _take(self, name: str) -> list[Job]:
        """Return the waiting jobs that start now."""
        taken: list[Job] = []
        with self._wake:
            self._drop_cancelled()
            others = [job.since for job in self._waiting if job.asked.model.name != name]
            if self._running and others and time.monotonic() - min(others) > SWITCH_SECONDS:
                return []
            rows, tokens = len(self._running), self._running_tokens()
            for job in self._waiting:
                if job.asked.model.name != name:
                    continue
                asked = job.asked
                tokens += len(asked.ids) + asked.choices * asked.settings.max_new_tokens
                rows += asked.choices
                fits = rows <= self.limits.rows and tokens <= self.limits.running_tokens
                if not fits and (self._running or taken):
                    break
                taken.append(job)
                if self._running or not fits or asked.pictures:
                    break  # one prompt at a time between the tokens of those that run
            gone = set(map(id, taken))
            self._waiting = [job for job in self._waiting if id(job) not in gone]
        return taken

    def _running_tokens(self) -> int:
        """Return an upper bound of the tokens whose keys and values the running answers hold."""
        found, jobs = 0, set()
        for one in self._running:
            found += one.job.asked.settings.max_new_tokens
            if id(one.job) not in jobs:
                jobs.add(id(one.job))
                found += len(one.job.asked.ids)
        return found

    def _start(self, jobs: Sequence[Job], batch: RunningBatch) -> None:
        """Compute the prompts of jobs and add their answers to the batch; a job that fails does not harm others."""
        made: list[_Answer] = []
        for job in jobs:
            try:
                made += self._answers(job, batch.model)
            except Exception as error:
                self._report_failure(job, error)
        if made:
            self._running += made
            batch.join([one.row for one in made])

    def _answers(self, job: Job, network: Any) -> list[_Answer]:
        asked, tokenizer = job.asked, self.models.tokenizer
        prefix, cached = self._prefix(asked, network)
        found = []
        for choice in range(asked.choices):
            sampler = Sampler(asked.settings, asked.seed + choice, asked.top_logprobs)
            row = Row(asked.ids, prefix, sampler)
            found.append(_Answer(job, choice, row, TextStream(tokenizer, asked.stop), cached))
        return found

    def _prefix(self, asked: Asked, network: Any) -> tuple[Prefix | None, int]:
        """Return the prefix of a prompt, and how many of its tokens were in the cache."""
        length = prefix_length(asked.ids, self.models.base_model.config.image_token_id)
        if not length:
            return None, 0
        first_missing = len(asked.pictures)

        def load(first: int) -> dict[str, Any]:
            nonlocal first_missing
            first_missing = first
            return self.vectors.load(asked.pictures[first:], asked.model.shares_vectors)

        shown: list[Hashable] = [picture.key for picture in asked.pictures]
        prefix = self.prefixes.get(network, asked.ids[:length], shown, load, asked.model.name)
        return prefix, sum(picture.layout.tokens for picture in asked.pictures[:first_missing])

    def _report(self, batch: RunningBatch) -> None:
        """Send what is new of every answer, and take out those that have ended."""
        ended = []
        stops = (self.models.tokenizer.eos_id, self.models.tokenizer.end_of_turn_id)
        for one in self._running:
            if one.seen == len(one.row.ids):
                continue
            text, finish = "", None
            for token in one.row.ids[one.seen :]:
                one.seen += 1
                if token in stops:
                    finish = "stop"
                else:
                    text += one.text.add(token)
                    if one.text.stopped:
                        finish = "stop"
                    elif one.seen >= one.job.asked.settings.max_new_tokens:
                        finish = "length"
                if finish:
                    break
            if finish:
                text += one.text.end()
                finish = "stop" if one.text.stopped else finish
                ended.append(one)
            self._send(one, text, finish)
        self._remove(ended, batch)

    def _send(self, one: _Answer, text: str, finish: Any) -> None:
        scores = one.row.scores
        if not text and finish is None and len(scores) == one.sent_scores and one.seen > 1:
            return
        new = tuple(scores[one.sent_scores :])
        one.sent_scores = len(scores)
        one.job.emit(Piece(one.choice, text, new, finish, one.seen, one.cached))

    def _remove(self, gone: Sequence[_Answer], batch: RunningBatch) -> None:
        if not gone:
            return
        batch.leave([one.row for one in gone])
        ids = set(map(id, gone))
        self._running = [one for one in self._running if id(one) not in ids]

    def _fail(self, error: Exception) -> None:
        """Report a failure to every running job; the engine goes on."""
        jobs = {id(one.job): one.job for one in self._running}
        self._running = []
        for job in jobs.values():
            self._report_failure(job, error)
        if isinstance(error, torch.OutOfMemoryError):
            self.prefixes = PrefixCache(self.limits.prefix_bytes)

    def _report_failure(self, job: Job, error: Exception) -> None:
        # without the message, which may repeat a part of the request
        LOG.error("a request failed: %s%s", type(error).__name__, _place(error))
        job.emit(error)


def _place(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f" in {trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno}"
