"""Scores of answers as the field defines them, each with its source, and their confidence intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ixtune.scores import fields, text
from ixtune.scores.case import Case, Part
from ixtune.scores.choice import choice_accuracy
from ixtune.scores.ocrbench import ocrbench
from ixtune.scores.relaxed import relaxed_accuracy
from ixtune.scores.vqa import vqa_accuracy


@dataclass(frozen=True, slots=True)
class Score:
    """Score: a way to judge answers.

    Attributes:
        name: Name in commands and recipes.
        title: Heading in tables.
        part: Returns what one answer adds to numerator and denominator; a set's score is the quotient of the sums.
        higher_is_better: False for error rates.
    """

    name: str
    title: str
    part: Callable[[Case], Part]
    higher_is_better: bool = True


SCORES = {
    score.name: score
    for score in (
        Score("exact_match", "exact match", text.exact_match),
        Score("anls", "ANLS", text.anls),
        Score("relaxed_accuracy", "relaxed accuracy", relaxed_accuracy),
        Score("vqa_accuracy", "VQA accuracy", vqa_accuracy),
        Score("token_f1", "token F1", text.token_f1),
        Score("cer", "CER", text.character_error_rate, higher_is_better=False),
        Score("wer", "WER", text.word_error_rate, higher_is_better=False),
        Score("field_accuracy", "field accuracy", fields.field_accuracy),
        Score("field_f1", "field F1", fields.field_f1),
        Score("choice_accuracy", "choice accuracy", choice_accuracy),
        Score("ocrbench", "OCRBench", ocrbench),
    )
}
