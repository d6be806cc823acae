"""Generate answers in one thread that owns the model.

Each model has a batch, which its requests join and leave between two tokens. The batches alternate, one token each,
so that no model waits for another.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ixtune.answering.json_logits import JsonLogits
from ixtune.answering.running_batch import Row, RunningBatch
from ixtune.answering.sampler import Sampler
from ixtune.answering.text_stream import TextStream
from ixtune.model.prefix_cache import PrefixCache, prefix_length
from ixtune.model.shared_prefix import Prefix
from ixtune.serving.engine.job import Full, Job, Limits, Piece, Stopped
from ixtune.serving.engine.models import Models
from ixtune.serving.engine.vectors import VectorCache
from ixtune.serving.errors import place_of
from ixtune.serving.prompts import Asked

LOG = logging.getLogger("ixtune.serving")


@dataclass(eq=False)
class _Answer:
    """An answer being generated."""

    job: Job
    choice: int
    row: Row
    text: TextStream
    cached: int
    seen: int = 0  # tokens whose text has been read
    unsent: str = ""
    sent_scores: int = 0


@dataclass(eq=False)
class _Batch:
    """Answers of one model, and their rows."""

    rows: RunningBatch
    answers: list[_Answer] = field(default_factory=list)


class Engine:
    """Answers jobs in its own thread.

    Attributes:
        models: The loaded models.
        limits: Bounds.
        prefixes: Keys and values of prompt beginnings that end with an image.
        vectors: Image vectors, shared by models with the base's tower and separators.
        stops: Token ids that end an answer.
    """

    def __init__(self, models: Models, limits: Limits) -> None:
        """Prepare; `start` starts the thread."""
        self.models, self.limits = models, limits
        self.prefixes = PrefixCache(limits.prefix_bytes, continues=True)
        self.vectors = VectorCache(models.base_model, limits.vector_bytes)
        self.stops = (models.tokenizer.eos_id, models.tokenizer.end_of_turn_id)
        self._waiting: list[Job] = []
        self._batches: dict[str, _Batch] = {}
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="ixtune-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Finish running and waiting jobs, and end the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, job: Job) -> None:
        """Accept a job.

        Raises:
            Full: Too many are waiting.
            Stopped: The engine is stopping.
        """
        with self._wake:
            if self._stopping or not self._thread.is_alive():
                raise Stopped
            self._waiting = [one for one in self._waiting if not one.cancelled.is_set()]
            held = sum(one.asked.nbytes for one in (*self._waiting, job))
            if len(self._waiting) >= self.limits.waiting or (self._waiting and held > self.limits.waiting_bytes):
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
        return len(self._waiting), len(self._running())

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._running() and not self._stopping:
                    self._wake.wait()
                if self._stopping and not self._waiting and not self._running():
                    return
            with self.models.autocast():
                taken = self._take()
                for name in dict.fromkeys(job.asked.model.name for job in taken):
                    self._start(name, [job for job in taken if job.asked.model.name == name])
                for name, batch in list(self._batches.items()):
                    self._advance(name, batch)

    def _running(self) -> list[_Answer]:
        return [one for batch in list(self._batches.values()) for one in batch.answers]

    def _take(self) -> list[Job]:
        """Return the waiting jobs to start now, in the order of their arrival.

        Jobs whose images have to be computed start one at a time, so that running answers continue between two of them.
        """
        with self._wake:
            self._waiting = [job for job in self._waiting if not job.cancelled.is_set()]
            running = self._running()
            rows, tokens = len(running), sum(job.tokens for job in {id(one.job): one.job for one in running}.values())
            taken: list[Job] = []
            for job in self._waiting:
                rows, tokens = rows + job.asked.choices, tokens + job.tokens
                fits = rows <= self.limits.rows and tokens <= self.limits.running_tokens
                if not fits and (running or taken):
                    break
                taken.append(job)
                if not self._is_light(job.asked):
                    break
            del self._waiting[: len(taken)]
        return taken

    def _is_light(self, asked: Asked) -> bool:
        """Return whether a prompt's images, if it has any, are in the cache."""
        length = self._prefix_length(asked)
        shown = [picture.key for picture in asked.pictures]
        return not length or self.prefixes.has(asked.ids[:length], shown, asked.model.name)

    def _start(self, name: str, jobs: Sequence[Job]) -> None:
        """Compute the prompts of jobs for one model and add their answers to its batch."""
        network = self.models.network(name)
        batch = self._batches.setdefault(name, _Batch(RunningBatch(network, self.models.tokenizer.pad_id)))
        made: list[_Answer] = []
        for job in jobs:
            try:
                made += self._answers(job, network)
            except Exception as error:  # does not affect the others
                self._report_failure(job, error)
        try:
            if made:
                batch.rows.join([one.row for one in made])
                batch.answers += made
                self._report(batch)
        except Exception as error:
            for job in {id(one.job): one.job for one in made}.values():
                self._report_failure(job, error)

    def _advance(self, name: str, batch: _Batch) -> None:
        """Add a token to every answer of a batch."""
        self._remove([one for one in batch.answers if one.job.cancelled.is_set()], batch)
        try:
            if batch.answers:
                batch.rows.step()
                self._report(batch)
        except Exception as error:
            for job in {id(one.job): one.job for one in batch.answers}.values():
                self._report_failure(job, error)
            batch.answers.clear()
        if not batch.answers:
            del self._batches[name]

    def _answers(self, job: Job, network: Any) -> list[_Answer]:
        asked, tokenizer = job.asked, self.models.tokenizer
        prefix, cached = self._prefix(asked, network)
        found = []
        for choice in range(asked.choices):
            held = JsonLogits([asked.grammar]) if asked.grammar else None
            sampler = Sampler(asked.settings, asked.seed + choice, asked.top_logprobs, held)
            row = Row(asked.ids, prefix, sampler)
            found.append(_Answer(job, choice, row, TextStream(tokenizer, asked.stop), cached))
        return found

    def _prefix_length(self, asked: Asked) -> int:
        return prefix_length(asked.ids, self.models.base_model.config.image_token_id)

    def _prefix(self, asked: Asked, network: Any) -> tuple[Prefix | None, int]:
        """Return the prefix of a prompt, and how many of its tokens were in the cache."""
        length = self._prefix_length(asked)
        if not length:
            return None, 0
        first_missing = len(asked.pictures)

        def load(first: int) -> dict[str, Any]:
            nonlocal first_missing
            first_missing = first
            return self.vectors.load(asked.pictures[first:], asked.model.shares_vectors)

        shown: list[Hashable] = [picture.key for picture in asked.pictures]
        prefix = self.prefixes.get(network, asked.ids[:length], shown, load, asked.model.name, len(asked.ids))
        for picture in asked.pictures:
            picture.release()
        return prefix, sum(picture.layout.tokens for picture in asked.pictures[:first_missing])

    def _report(self, batch: _Batch) -> None:
        """Send the new part of every answer, and remove those that have ended."""
        ended = []
        for one in batch.answers:
            try:
                text, finish = self._read(one)
                self._send(one, text, finish)
            except Exception as error:
                self._report_failure(one.job, error)
                finish = "stop"
            if finish:
                ended.append(one)
        self._remove(ended, batch)

    def _read(self, one: _Answer) -> tuple[str, Literal["stop", "length"] | None]:
        """Return the text of the tokens that were not read yet, and whether the answer has ended."""
        text = ""
        for token in one.row.ids[one.seen :]:
            one.seen += 1
            if token in self.stops:
                return text + one.text.end(), "stop"
            text += one.text.add(token)
            if one.text.stopped:
                return text, "stop"
            if one.seen >= one.job.asked.settings.max_new_tokens:
                text += self._completed(one) + one.text.end()
                return text, "stop" if one.text.stopped else "length"
        return text, None

    def _completed(self, one: _Answer) -> str:
        """Return what completes JSON that was cut off; '' for free answers."""
        grammar = one.job.asked.grammar
        closing = grammar.closing(one.row.ids[: one.seen]) if grammar else None
        return "".join(one.text.add(token) for token in closing or ())

    def _send(self, one: _Answer, text: str, finish: Literal["stop", "length"] | None) -> None:
        one.unsent += text
        new = tuple(one.row.scores[one.sent_scores :])
        if finish is None and (not one.job.streams or not (one.unsent or new or one.seen == 1)):
            return
        one.job.emit(Piece(one.choice, one.unsent, new, finish, one.seen, one.cached))
        one.unsent, one.sent_scores = "", one.sent_scores + len(new)

    def _remove(self, gone: Sequence[_Answer], batch: _Batch) -> None:
        batch.rows.leave([one.row for one in gone])
        ids = set(map(id, gone))
        batch.answers = [one for one in batch.answers if id(one) not in ids]

    def _report_failure(self, job: Job, error: Exception) -> None:
        # without the message, which may repeat a part of the request
        LOG.error("a request failed: %s%s", type(error).__name__, place_of(error))
        job.emit(error)
        if isinstance(error, torch.OutOfMemoryError):
            self.prefixes = PrefixCache(self.limits.prefix_bytes, continues=True)
