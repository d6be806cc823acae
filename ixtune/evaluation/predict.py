"""Answer questions into a file that is written atomically, and resume a killed run."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ixtune.answering.answerer import Answer, Answerer
from ixtune.answering.settings import Settings
from ixtune.data.pack import packs_sha256
from ixtune.data.prepared.image_files import ImageFiles
from ixtune.errors import IxtuneError
from ixtune.evaluation.journal import Journal
from ixtune.evaluation.questions import Asked, ImageView, names_of, prompt_of
from ixtune.evaluation.session import CACHE_BYTES, Loaded
from ixtune.files import atomic_write_bytes, refuse_existing
from ixtune.training.batch import ImageSource
from ixtune.training.processes import parallel
from ixtune.training.stopping import together


@dataclass(frozen=True, slots=True)
class Predicted:
    """Counts of a prediction.

    Attributes:
        answers: Answers in the file, including those of an earlier process.
        resumed: Answers of an earlier process.
        tokens: Tokens generated now.
        seconds: Time for these, images included.
        unfinished: Answers cut off at `max_new_tokens`.
        rejects: Lines that could not be asked.
        prefixes: Shared prefixes computed now, and how often one was reused.
    """

    answers: int
    resumed: int
    tokens: int
    seconds: float
    unfinished: int
    rejects: int
    prefixes: tuple[int, int] = (0, 0)


def predict_one(
    loaded: Loaded, question: str, images: Sequence[str | Path], view: ImageView, settings: Settings
) -> Answer:
    """Answer one question about images anywhere on this machine."""
    source = ImageSource(ImageFiles((Path("/"),), view.corrections))  # the prompt's paths are absolute
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
) -> Predicted:
    """Answer all questions into `out`, one JSON object per line, in their order.

    Finished answers are kept in a hidden journal next to `out`, so that the same call resumes after a kill. Lines that
    could not be asked are written to `OUT.rejects.jsonl`. Processes that have joined
    (`ixtune.training.processes.parallel.join`) share the questions, each with a journal of its own; the first one
    writes `out`, and all return the whole outcome.

    Raises:
        IxtuneError: `out` exists, the journal belongs to other questions or settings, or writing fails.
    """
    prompts = [question.prompt for question in asked.questions]
    images = ImageSource(asked.files, loaded.base_model, CACHE_BYTES)
    answerer = Answerer(loaded.model, loaded.tokenizer, images, settings)
    made = answerer.batches(prompts, batch_size)
    journal = Journal(out, _key(loaded, asked, settings, made))

    def resume() -> dict[int, dict[str, Any]]:
        refuse_existing(out)
        return journal.read()

    done = parallel.from_first(resume)
    resumed, mine, tokens, start = len(done), {}, 0, time.perf_counter()
    if progress is not None:
        progress(resumed)
    with together(), _writing(out), loaded.autocast(), journal:
        for chosen in parallel.my_batches(made, [prompt.size for prompt in prompts]):
            # the same batches as in a run without a kill, so that sums and samples are equal
            wanted = [index for index in chosen if index not in done]
            if not wanted:
                continue
            answers = answerer.answer([prompts[index] for index in chosen])
            for index, answer in zip(chosen, answers, strict=True):
                tokens += answer.tokens
                if index in wanted:
                    mine[index] = journal.add(index, answer)
            journal.sync()
            if progress is not None:
                progress(len(wanted))
    done |= parallel.merged(mine)
    seconds = time.perf_counter() - start

    def write() -> None:
        with _writing(out):
            if asked.rejects:
                atomic_write_bytes(rejects_of(out), b"".join(reject.row() for reject in asked.rejects))
            lines = [json.dumps(_line(one, done[at]), ensure_ascii=False) for at, one in enumerate(asked.questions)]
            atomic_write_bytes(out, "".join(line + "\n" for line in lines).encode())
            journal.remove()

    parallel.from_first(write)
    unfinished = sum(answer["finish"] == "length" for answer in done.values())
    every = parallel.total(tokens, answerer.prefixes.computed, answerer.prefixes.reused)
    tokens, computed, reused = map(int, every)
    return Predicted(len(done), resumed, tokens, seconds, unfinished, len(asked.rejects), (computed, reused))


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turn a failed write into an error that says how to resume."""
    try:
        yield
    except OSError as error:
        raise IxtuneError(
            f"the answers cannot be written: {error.strerror or error}",
            where=str(out),
            hint="free disk space, then rerun the command to resume",
        ) from error


def rejects_of(out: Path) -> Path:
    """Return the file for the lines that could not be asked."""
    return out.with_name(out.name + ".rejects.jsonl")


def _line(question: Any, answer: dict[str, Any]) -> dict[str, Any]:
    asked = question.prompt.turns[-1].text
    images = list(names_of(question.prompt.images))
    return {"id": question.id, "question": asked, "images": images, **answer}


def _key(loaded: Loaded, asked: Asked, settings: Settings, made: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return everything that determines the answers."""
    digest = hashlib.sha256()
    for question in asked.questions:
        images = [_identity(image, asked.files) for image in question.prompt.images]
        content = [question.id, [asdict(turn) for turn in question.prompt.turns], images]
        digest.update(json.dumps(content, sort_keys=True).encode())
    return {
        "model": loaded.description(),
        "questions": digest.hexdigest(),
        "settings": asdict(settings),
        "batches": packs_sha256(made),
    }


def _identity(image: dict[str, Any], files: ImageFiles) -> dict[str, Any]:
    """Return the key of an image: the hash of its content, or its path if no hash was recorded."""
    place = {"root": None, "path": None} if image.get("content") else {"root": str(files.roots[image["root"]])}
    return image | place
