"""Judge answers: scores with intervals, paired differences, and controls that show whether the images were used."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from ixtune.answering.answerer import Answer, Answerer
from ixtune.answering.prompt import Prompt
from ixtune.errors import IxtuneError
from ixtune.evaluation.contenders import MAJORITY
from ixtune.evaluation.controls import majority_answers, question_forms
from ixtune.evaluation.exam import ExamQuestion
from ixtune.scores import judging
from ixtune.scores.case import Case, Part
from ixtune.scores.circular import all_right
from ixtune.scores.intervals import difference, interval
from ixtune.training.processes import parallel
from ixtune.training.stopping import together

_LARGEST = 700.0  # exp of this is about the largest float
CHOICE, CIRCULAR = "choice_accuracy", "circular_accuracy"
Tally = tuple[Sequence[Part], Sequence[Hashable]]
"""Parts of a score, and the group that each belongs to."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers of one model or control to every question.

    Attributes:
        name: Name in the table.
        texts: One answer per question, in order.
        control: Whether this is a control and not a contender.
        loss: Mean cross-entropy of the first references, if it was measured.
        seconds: Time to answer, images included.
        tokens: Number of generated tokens.
        unfinished: Number of answers cut off at the maximum length.
    """

    name: str
    texts: tuple[str, ...]
    control: bool = False
    loss: float | None = None
    seconds: float | None = None
    tokens: int | None = None
    unfinished: int | None = None


def ask(
    answerer: Answerer,
    prompts: Mapping[str, Sequence[Prompt]],
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> list[Answers]:
    """Let a model answer several lists of prompts at once; prompts about the same images share a batch.

    With several processes, each answers its share of the batches and receives all answers.

    Args:
        answerer: The model.
        prompts: Lists by the name of their answers.
        batch_size: Maximum number of prompts in a batch.
        progress: Called with the number of prompts in each batch that this process has finished.

    Returns:
        The answers to each list; the time of a batch is divided evenly among its prompts.
    """
    every = [prompt for of_one in prompts.values() for prompt in of_one]
    said: dict[int, tuple[Answer, float]] = {}
    made = answerer.batches(every, batch_size)
    with together():
        for chosen in parallel.my_batches(made, [prompt.size for prompt in every]):
            start = time.perf_counter()
            answers = answerer.answer([every[index] for index in chosen])
            share = (time.perf_counter() - start) / len(chosen)
            said |= {index: (answer, share) for index, answer in zip(chosen, answers, strict=True)}
            if progress is not None:
                progress(len(chosen))
    said = parallel.merged(said)
    in_order = iter([said[index] for index in range(len(every))])
    return [_answers(name, list(islice(in_order, len(of_one)))) for name, of_one in prompts.items()]


def _answers(name: str, said: Sequence[tuple[Answer, float]]) -> Answers:
    return Answers(
        name,
        tuple(answer.text for answer, _ in said),
        seconds=sum(seconds for _, seconds in said),
        tokens=sum(answer.tokens for answer, _ in said),
        unfinished=sum(answer.finish == "length" for answer, _ in said),
    )


def majority(questions: Sequence[ExamQuestion]) -> Answers:
    """Return the control that gives the most common answer to the other questions of the same form."""
    given = majority_answers([q.text for q in questions], [q.references[0] for q in questions])
    return Answers(MAJORITY, tuple(given), control=True)


def swapped(questions: Sequence[ExamQuestion], seed: int = 0) -> list[Prompt]:
    """Return the prompts with images of other questions in place of their own.

    The images come from one question with the same number of images, or from several if there is none. Prompts without
    images are unchanged.

    Raises:
        IxtuneError: All questions are about the same image, so there is nothing to swap with.
    """
    rng = random.Random(seed)
    by_count: dict[int, list[Prompt]] = {}
    every: dict[tuple[int, str], dict[str, Any]] = {}
    for question in questions:
        by_count.setdefault(len(question.prompt.images), []).append(question.prompt)
        every |= zip(question.prompt.paths, question.prompt.images, strict=True)
    return [_with_others(question.prompt, by_count[len(question.prompt.images)], every, rng) for question in questions]


def _with_others(
    prompt: Prompt, donors: Sequence[Prompt], every: Mapping[tuple[int, str], dict[str, Any]], rng: random.Random
) -> Prompt:
    if not prompt.images:
        return prompt
    own = set(prompt.paths)
    # a few draws nearly always succeed; otherwise try all
    for donor in (*(rng.choice(donors) for _ in range(8)), *donors):
        if own.isdisjoint(donor.paths):
            return replace(prompt, images=donor.images)
    others = [image for path, image in every.items() if path not in own]
    if not others:
        raise IxtuneError(
            "the blind control needs questions about different images",
            where=", ".join(path for _, path in prompt.paths),
            hint="evaluate on a larger set, or pass --no-controls",
        )
    return replace(prompt, images=tuple(rng.choice(others) for _ in prompt.images))


def judged(questions: Sequence[ExamQuestion], answered: Sequence[Answers], scores: Sequence[str]) -> dict[str, Any]:
    """Return results, comparisons and answers in the form of an evaluation file.

    Args:
        questions: The questions.
        answered: Answers of each model and control; the others are compared with the first model.
        scores: Names of `SCORES`, the main one first.

    Returns:
        `results`: each score with its interval, and `circular_accuracy` if multiple-choice questions were asked in
        several orders. `comparisons`: each model with the first one, with its own swapped control and with the
        majority answer, paired, by bootstrap and permutation. `answers`: one mapping per question.
    """
    parts = {one.name: {score: _parts(questions, one, score) for score in scores} for one in answered}
    groups = [question.about for question in questions]
    tallies: dict[str, dict[str, Tally]] = {
        name: {score: (found[score], groups) for score in scores} for name, found in parts.items()
    }
    if CHOICE in scores and any(question.group not in ("", question.id) for question in questions):
        for name, found in parts.items():
            tallies[name][CIRCULAR] = _circular(questions, found[CHOICE])
    results = [
        {
            "name": one.name,
            "kind": "control" if one.control else "model",
            **_loss(one.loss),
            "scores": {score: _interval(*tally) for score, tally in tallies[one.name].items()},
        }
        for one in answered
    ]
    comparisons = [
        {"name": name, "than": than, "score": score, **_difference(tallies[than][score][0], *tallies[name][score])}
        for name, than in _pairs(answered)
        for score in tallies[name]
    ]
    return {"results": results, "comparisons": comparisons, "answers": list(_rows(questions, answered, parts))}


def _parts(questions: Sequence[ExamQuestion], one: Answers, score: str) -> list[Part]:
    cases = (Case(text, q.references, q.options, q.kind) for text, q in zip(one.texts, questions, strict=True))
    return judging.parts(score, cases)


def _circular(questions: Sequence[ExamQuestion], parts: Sequence[Part]) -> Tally:
    """Return parts in which a question is right only if it is right in every order of its options."""
    groups = [question.group or question.id for question in questions]
    about = {group: question.about for group, question in zip(groups, questions, strict=True)}
    return all_right(parts, groups), [about[group] for group in dict.fromkeys(groups)]


def _interval(parts: Sequence[Part], groups: Sequence[Hashable]) -> dict[str, float]:
    found = interval(parts, groups)
    return {"value": found.value, "low": found.low, "high": found.high}


def _difference(first: Sequence[Part], second: Sequence[Part], groups: Sequence[Hashable]) -> dict[str, float]:
    found = difference(first, second, groups)
    return {
        "difference": found.interval.value,
        "low": found.interval.low,
        "high": found.interval.high,
        "p_value": found.p,
    }


def _pairs(answered: Sequence[Answers]) -> Iterable[tuple[str, str]]:
    """Yield the pairs of results to compare."""
    models = [one.name for one in answered if not one.control]
    controls = [one.name for one in answered if one.control]
    for model in models[1:]:
        yield model, models[0]
    for model in models[1:] or models:
        for control in controls:
            if control == MAJORITY or control == blind_name(model):
                yield model, control


def blind_name(model: str) -> str:
    """Return the name of a model's blind control."""
    return f"{model}, images swapped"


def _rows(
    questions: Sequence[ExamQuestion], answered: Sequence[Answers], parts: Mapping[str, Mapping[str, Sequence[Part]]]
) -> Iterable[dict[str, Any]]:
    forms = question_forms([question.text for question in questions])
    for at, question in enumerate(questions):
        yield {
            "id": question.id,
            "question": question.text,
            "form": forms[at],
            "kind": question.kind,
            "references": list(question.references),
            "options": dict(question.options),
            "answers": {one.name: one.texts[at] for one in answered},
            "scores": {
                one.name: {score: found[at][0] / found[at][1] for score, found in parts[one.name].items()}
                for one in answered
            },
        }


def _loss(loss: float | None) -> dict[str, float | None]:
    """Return loss and perplexity; None if they were not measured or are not finite."""
    if loss is None or not math.isfinite(loss):
        return {"loss": None, "perplexity": None}
    return {"loss": loss, "perplexity": math.exp(loss) if loss < _LARGEST else None}
