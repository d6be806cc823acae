"""What is asked in an evaluation: questions with all answers that are right, the same for every model."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ixtune.data.record import Turn
from ixtune.data.rejects import Reject
from ixtune.data.store import PictureFiles, PreparedSet
from ixtune.data.template import PLACEHOLDER
from ixtune.errors import IxtuneError
from ixtune.evaluation.prompt import Prompt


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Attributes:
        id: Its name in the data.
        prompt: What the model sees.
        references: Answers that are right, the one trained on first.
        options: Letter -> text of a multiple-choice question.
        kind: The data's own word for its type; empty where they have none.
    """

    id: str
    prompt: Prompt
    references: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    kind: str = ""

    @property
    def text(self) -> str:
        """The question's own words."""
        return self.prompt.turns[-1].text.replace(PLACEHOLDER, "").strip()

    @property
    def about(self) -> Hashable:
        """What the question is about: its pictures, or itself where it has none."""
        return self.prompt.paths or (self.id, self.prompt.turns)


@dataclass(frozen=True, slots=True)
class Exam:
    """All questions of an evaluation.

    Attributes:
        questions: In the order of the data.
        files: Where their pictures lie.
        rows: The questions with their first reference as prepared records, for the loss.
        manifest: Of the prepared set, where they are from one.
        rejects: Entries of the data that cannot be asked.
    """

    questions: tuple[Question, ...]
    files: PictureFiles
    rows: Rows
    manifest: Mapping[str, Any] | None = None
    rejects: tuple[Reject, ...] = ()


class Rows:
    """Prepared records as the loss takes them."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self.rows = rows

    @property
    def lengths(self) -> list[int]:
        """Tokens of each record."""
        return [row["length"] for row in self.rows]

    def record(self, index: int) -> dict[str, Any]:
        """One of them."""
        return self.rows[index]


def exam_of(prepared: PreparedSet, limit: int | None = None) -> Exam:
    """The last question of every record of a prepared set, or of the first `limit`.

    Raises:
        IxtuneError: the set is empty.
    """
    count = len(prepared.dataset) if limit is None else min(limit, len(prepared.dataset))
    rows = [prepared.dataset[at] for at in range(count)]
    if not rows:
        raise IxtuneError("the set holds no records", where=str(prepared.root), mend="prepare it again")
    return Exam(tuple(_question(row) for row in rows), prepared.files, Rows(rows), prepared.manifest)


def _question(row: Mapping[str, Any]) -> Question:
    *before, last = row["turns"]
    turns = tuple(Turn(turn["role"], turn["text"]) for turn in before)
    answer = last["text"].strip()
    others = (reference.strip() for reference in row["references"])
    references = tuple(dict.fromkeys([answer, *filter(None, others)]))
    return Question(row["id"], Prompt(turns, tuple(row["pictures"])), references)
