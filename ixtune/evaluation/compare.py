"""Base beside adapter on a held-out set, with the two controls that unmask a model which does not look."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ixtune.data.record import Turn
from ixtune.data.store import PreparedSet
from ixtune.data.tokenizer import Tokenizer
from ixtune.errors import IxtuneError
from ixtune.evaluation.controls import majority_answers
from ixtune.evaluation.generate import Answerer, Settings, answer_all
from ixtune.evaluation.prompt import Prompt
from ixtune.scores import SCORES
from ixtune.scores.case import Case
from ixtune.scores.intervals import Interval, interval


@dataclass(frozen=True, slots=True)
class Questions:
    """The last question of every record, its reference answer, and what was said before."""

    prompts: tuple[Prompt, ...]
    references: tuple[str, ...]
    ids: tuple[str, ...]

    @property
    def texts(self) -> list[str]:
        """The questions' own words."""
        return [prompt.turns[-1].text.replace("<ImageHere>", "").strip() for prompt in self.prompts]

    @property
    def groups(self) -> list[Hashable]:
        """What each question is about: its pictures, or itself where it has none."""
        return [prompt.paths or at for at, prompt in enumerate(self.prompts)]


@dataclass(slots=True)
class Result:
    """What one model, or one control, answered."""

    name: str
    exact: Interval
    loss: float | None
    answers: list[str] = field(repr=False)


def questions_of(prepared: PreparedSet) -> Questions:
    """Cut every record before its last answer.

    Raises:
        IxtuneError: the set is empty.
    """
    records = list(prepared.dataset)
    if not records:
        raise IxtuneError("the set holds no records", where=str(prepared.root), mend="prepare it again")
    prompts = tuple(
        Prompt(tuple(Turn(turn["role"], turn["text"]) for turn in record["turns"][:-1]), tuple(record["pictures"]))
        for record in records
    )
    references = tuple(record["turns"][-1]["text"].strip() for record in records)
    return Questions(prompts, references, tuple(record["id"] for record in records))


def swapped(questions: Questions, seed: int = 0) -> Questions:
    """The same questions, each with the pictures of another record that has other ones.

    Records without pictures stay as they are.

    Raises:
        IxtuneError: there is nothing to swap with.
    """
    rng = random.Random(seed)
    by_count: dict[int, list[Prompt]] = {}
    for prompt in questions.prompts:
        by_count.setdefault(len(prompt.pictures), []).append(prompt)
    blind = []
    for prompt in questions.prompts:
        donors = by_count[len(prompt.pictures)]
        if not prompt.pictures:
            blind.append(prompt)
            continue
        if all(donor.paths == prompt.paths for donor in donors):
            raise IxtuneError(
                "the blind control needs records with different pictures, as many in each",
                where=", ".join(path for _, path in prompt.paths),
                mend="evaluate on a larger set, or without controls: --no-controls",
            )
        donor = rng.choice(donors)
        while donor.paths == prompt.paths:
            donor = rng.choice(donors)
        blind.append(Prompt(prompt.turns, donor.pictures))
    return Questions(tuple(blind), questions.references, questions.ids)


def ask(
    name: str,
    model: Any,
    tokenizer: Tokenizer,
    questions: Questions,
    images_of: Callable[[Sequence[Any]], dict[str, Any]],
    *,
    batch_size: int,
    max_new_tokens: int,
    loss: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> Result:
    """Let a model answer and score it by exact match."""
    answers = answer_all(
        Answerer(model, tokenizer, images_of, Settings(max_new_tokens)), questions.prompts, batch_size, progress
    )
    return Result(name, _score(answers, questions), loss, answers)


def majority(questions: Questions) -> Result:
    """The control that gives the commonest answer to the other questions of this form."""
    answers = majority_answers(questions.texts, questions.references)
    return Result("majority answer", _score(answers, questions), None, answers)


def _score(answers: list[str], questions: Questions) -> Interval:
    parts = [
        SCORES["exact_match"].part(Case(answer, (reference,)))
        for answer, reference in zip(answers, questions.references, strict=True)
    ]
    return interval(parts, questions.groups)
