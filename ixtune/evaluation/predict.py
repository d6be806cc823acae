"""Questions answered into a file that is whole or not there; a run that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ixtune.answering.answerer import Answer, Answerer
from ixtune.answering.batches import batches
from ixtune.answering.settings import Settings
from ixtune.data.prepared.store import ImageFiles
from ixtune.errors import IxtuneError
from ixtune.evaluation.questions import Asked, View, prompt_of
from ixtune.evaluation.session import CACHE_BYTES, Loaded
from ixtune.files import atomic_write_bytes, refuse_existing
from ixtune.training.batch import ImageSource


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was answered.

    Attributes:
        answers: In the file, those of an earlier process included.
        resumed: Of these, those of an earlier process.
        tokens: Made by this process.
        seconds: That took, images included.
        unfinished: Answers that `max_new_tokens` cut off.
        rejects: Lines that could not be asked.
    """

    answers: int
    resumed: int
    tokens: int
    seconds: float
    unfinished: int
    rejects: int


def predict_one(loaded: Loaded, question: str, images: Sequence[Path], view: View, settings: Settings) -> Answer:
    """The answer to one question about images anywhere on this machine."""
    source = ImageSource(ImageFiles((Path(),), view.corrections))  # the prompt's paths are absolute
    with loaded.autocast():
        answerer = Answerer(loaded.model, loaded.tokenizer, source, settings)
        return answerer.answer([prompt_of(question, images, view)])[0]


def predict_all(
    loaded: Loaded,
    asked: Asked,
    out: Path,
    settings: Settings,
    *,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> Outcome:
    """Answer all questions into `out`, one JSON object a line, in their order.

    What is answered lies beside it in a hidden journal until all is, so that after a kill the same call goes on. Lines
    that could not be asked are written to `OUT.rejects.jsonl`.

    Raises:
        IxtuneError: `out` exists, the journal is of other questions or settings, or the disk refuses.
    """
    refuse_existing(out)
    prompts = [question.prompt for question in asked.questions]
    journal = _Journal(out, _key(loaded, asked, settings, batch_size))
    done = journal.read()
    resumed, tokens, start = len(done), 0, time.perf_counter()
    if progress is not None:
        progress(resumed)
    images = ImageSource(asked.files, loaded.base_model, CACHE_BYTES)
    answerer = Answerer(loaded.model, loaded.tokenizer, images, settings)
    try:
        with loaded.autocast(), journal:
            for chosen in batches([prompt.size for prompt in prompts], max_rows=batch_size):
                # the batches are those of a run without a kill, for the sake of equal sums and equal draws
                wanted = [index for index in chosen if asked.questions[index].id not in done]
                if not wanted:
                    continue
                answers = answerer.answer([prompts[index] for index in chosen])
                for index, answer in zip(chosen, answers, strict=True):
                    tokens += answer.tokens
                    if index in wanted:
                        done[asked.questions[index].id] = journal.add(asked.questions[index].id, answer)
                journal.sync()
                if progress is not None:
                    progress(len(wanted))
        seconds = time.perf_counter() - start
        if asked.rejects:
            atomic_write_bytes(rejects_of(out), b"".join(reject.row() for reject in asked.rejects))
        lines = [json.dumps(_line(question, done[question.id]), ensure_ascii=False) for question in asked.questions]
        atomic_write_bytes(out, "".join(line + "\n" for line in lines).encode())
        journal.path.unlink()
    except OSError as error:
        raise IxtuneError(
            f"the answers cannot be written: {error.strerror or error}",
            where=str(out),
            hint="see that the disk has room, then give the same command again: it goes on where it was",
        ) from error
    unfinished = sum(answer["finish"] == "length" for answer in done.values())
    return Outcome(len(done), resumed, tokens, seconds, unfinished, len(asked.rejects))


def rejects_of(out: Path) -> Path:
    """Where the lines go that could not be asked."""
    return out.with_name(out.name + ".rejects.jsonl")


def _line(question: Any, answer: dict[str, Any]) -> dict[str, Any]:
    asked = question.prompt.turns[-1].text
    images = [image["path"] for image in question.prompt.images]
    return {"id": question.id, "question": asked, "images": images, **answer}


def _key(loaded: Loaded, asked: Asked, settings: Settings, batch_size: int) -> dict[str, Any]:
    """All that decides the answers."""
    digest = hashlib.sha256()
    for question in asked.questions:
        content = [question.id, [asdict(turn) for turn in question.prompt.turns], question.prompt.images]
        digest.update(json.dumps(content, sort_keys=True).encode())
    return {
        "model": loaded.description(),
        "questions": digest.hexdigest(),
        "roots": [str(root) for root in asked.files.roots],
        "settings": asdict(settings),
        "batch_size": batch_size,
    }


class _Journal:
    """`.OUT.unfinished`: a line that says what is answered and how, then a line for each answer."""

    def __init__(self, out: Path, key: dict[str, Any]) -> None:
        self.path = out.with_name(f".{out.name}.unfinished")
        self.key = key

    def read(self) -> dict[str, dict[str, Any]]:
        """Question id -> answer of an earlier process; a line that a kill tore is left out.

        Raises:
            IxtuneError: it is of other questions or settings.
        """
        with suppress(FileNotFoundError):
            *lines, torn = self.path.read_bytes().split(b"\n")
            if lines and json.loads(lines[0]) != json.loads(json.dumps(self.key)):
                raise IxtuneError(
                    "another prediction into this file was not finished, with another model, questions or settings",
                    where=str(self.path),
                    hint="give its command again to go on with it, or remove that file to begin anew",
                )
            if torn:
                os.truncate(self.path, self.path.stat().st_size - len(torn))
            found = [json.loads(line) for line in lines[1:]]
            return {line.pop("id"): line for line in found}
        return {}

    def __enter__(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab")
        if self._file.tell() == 0:
            self._write(self.key)
            self.sync()

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, name: str, answer: Answer) -> dict[str, Any]:
        """Write one answer down."""
        content = {"answer": answer.text, "finish": answer.finish, "tokens": answer.tokens}
        self._write({"id": name, **content})
        return content

    def sync(self) -> None:
        """Bring what was written to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def _write(self, content: dict[str, Any]) -> None:
        self._file.write(json.dumps(content, ensure_ascii=False).encode() + b"\n")
