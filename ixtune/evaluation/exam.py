"""Load the questions of an evaluation, each with all correct answers; they are the same for every model."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ixtune.answering.prompt import Prompt
from ixtune.data.benchmarks import Items
from ixtune.data.prepared.image_files import ImageFiles
from ixtune.data.prepared.store import PreparedSet, row_of
from ixtune.data.record import Record, Turn
from ixtune.data.rejects import RecordError, Reject
from ixtune.data.shared_prefixes import Beginning, Prefixes, beginning, group
from ixtune.data.text.conversation_rules import PLACEHOLDER
from ixtune.data.text.template import encode
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.errors import IxtuneError
from ixtune.evaluation.questions import ImageView, prompt_of
from ixtune.training.monitoring.answers import references_of


@dataclass(frozen=True, slots=True)
class ExamQuestion:
    """Question of an evaluation.

    Attributes:
        id: Its name in the data.
        prompt: What the model sees.
        references: Answers that are right, the one trained on first.
        options: Letter -> text of a multiple-choice question.
        kind: Type of the question in the data; empty if they have none.
        group: Name shared by all rotations of a multiple-choice question; empty if there are none.
    """

    id: str
    prompt: Prompt
    references: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    kind: str = ""
    group: str = ""

    @property
    def text(self) -> str:
        """Return the text of the question without image placeholders."""
        return self.prompt.turns[-1].text.replace(PLACEHOLDER, "").strip()

    @property
    def about(self) -> Hashable:
        """Return a key of the images of the question, or of the question itself if it has none."""
        return self.prompt.paths or (self.id, self.prompt.turns)


@dataclass(frozen=True, slots=True)
class Exam:
    """Questions of an evaluation.

    Attributes:
        questions: In the order of the data.
        files: Locations of their images.
        rows: The questions with their first reference as prepared records, for the loss.
        manifest: Manifest of the prepared set, if they come from one.
        rejects: Entries of the data that cannot be asked.
        tokenizer_sha256: Hash of the tokenizer, if the rows were tokenized here.
    """

    questions: tuple[ExamQuestion, ...]
    files: ImageFiles
    rows: ExamRows
    manifest: Mapping[str, Any] | None = None
    rejects: tuple[Reject, ...] = ()
    tokenizer_sha256: str | None = None


class ExamRows:
    """Prepared records for the loss.

    Attributes:
        rows: Columns of each record.
        prefixes: Groups of records with a common prefix, so that the loss computes an image once for all its questions.
    """

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        """Find the groups of `rows`."""
        self.rows = rows
        numbers: dict[Hashable, int] = {}
        self.prefixes: Prefixes | None = group([_beginning(row, numbers) for row in rows])

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each record."""
        return [row["length"] for row in self.rows]

    def record(self, index: int) -> dict[str, Any]:
        """Return the columns of one record."""
        return self.rows[index]


def _beginning(row: Mapping[str, Any], numbers: dict[Hashable, int]) -> Beginning:
    images = [
        (slot, tuple(sorted(image.items())), image["tokens"])
        for slot, image in zip(row["picture_slots"], row["pictures"], strict=True)
    ]
    return beginning(row["token_ids"], images, numbers)


def exam_of(prepared: PreparedSet, limit: int | None = None) -> Exam:
    """Return the last question of every record of a prepared set, or of the first `limit`.

    Raises:
        IxtuneError: the set is empty.
    """
    count = len(prepared.dataset) if limit is None else min(limit, len(prepared.dataset))
    rows = [prepared.dataset[at] for at in range(count)]
    if not rows:
        raise IxtuneError("the set holds no records", where=str(prepared.root), hint="prepare it again")
    return Exam(tuple(_question(row) for row in rows), prepared.files, ExamRows(rows), prepared.manifest)


def _question(row: Mapping[str, Any]) -> ExamQuestion:
    turns = tuple(Turn(turn["role"], turn["text"]) for turn in row["turns"][:-1])
    return ExamQuestion(row["id"], Prompt(turns, tuple(row["pictures"])), references_of(row))


def exam_of_items(items: Items, prompt: str, view: ImageView, tokenizer: Tokenizer, limit: int | None = None) -> Exam:
    """Return the questions of a benchmark file, images in front, or the first `limit` of them.

    Args:
        items: Questions of the file.
        prompt: Wording of the questions, with `{question}`.
        view: Settings for the image layouts.
        tokenizer: The base's.
        limit: Maximum number of questions; all rotations of a question count once.

    Raises:
        IxtuneError: No question is usable.
    """
    questions, rows, rejects = [], [], list(items.rejects)
    wanted = set(list(dict.fromkeys(item.group for item in items.items))[:limit])
    for item in items.items:
        if item.group not in wanted:
            continue
        try:
            asked = prompt_of(prompt.replace("{question}", item.question), item.images, view)
            turns = (*asked.turns, Turn("assistant", item.references[0]))
            record = Record(item.id, (), turns, item.source, item.place, references=item.references)
            sample = encode(record, asked.image_tokens, tokenizer)
        except RecordError as error:
            rejects.append(item.reject(error))
            continue
        rows.append(row_of(record, sample, asked.images))
        questions.append(ExamQuestion(item.id, asked, item.references, item.options, item.kind, item.group))
    if not questions:
        raise IxtuneError(
            "no question is usable",
            hint="correct the lines listed, or pass the folder of the images with --image-root",
            notes=[reject_line(one) for one in rejects[:5]],
        )
    # paths of items are absolute, so joining them to a root does not change them
    files = ImageFiles((Path("/"),), view.corrections)
    return Exam(tuple(questions), files, ExamRows(rows), None, tuple(rejects), tokenizer.sha256)


def reject_line(reject: Reject) -> str:
    """Format a reject as one line."""
    return f"{reject.where}: {reject.found}"
