"""Compute the majority control: the score of a model that learned only the distribution of answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_NUMBER = re.compile(r"\d+")
# a capitalized word that is not the first of the text: a name, in most languages
_NAME = re.compile(r"(?<=[^\W\d_][ ,;:('\"])[A-Z]\w*(?:[ -][A-Z]\w*)*")
_ENOUGH = 8  # mean questions per form; with fewer, forms distinguish names rather than kinds of questions


def question_forms(questions: Sequence[str]) -> list[str]:
    """Return each question with its numbers masked, so that questions of one kind have one form.

    If that leaves few questions per form, names are masked in all of them as well.
    """
    fine = _fine(questions)
    coarse = _coarse(fine)
    return coarse if len(fine) < _ENOUGH * len(set(fine)) and len(set(coarse)) > 1 else fine


def majority_answers(questions: Sequence[str], references: Sequence[str]) -> list[str]:
    """Return for each question the most common reference among the other questions of its form, or of all.

    Leaving the question out keeps a form that occurs once from answering itself. Forms with and without names are
    tried, and the better result is used, so that the control is hard to beat. A model that learned only the
    distribution of answers scores about the same.
    """
    fine = _fine(questions)
    found = [_commonest_of_others(forms, references) for forms in (fine, _coarse(fine))]
    return max(found, key=lambda answers: sum(map(str.__eq__, answers, references)))


def _fine(questions: Sequence[str]) -> list[str]:
    return [_NUMBER.sub("#", question) for question in questions]


def _coarse(forms: Sequence[str]) -> list[str]:
    return [_NAME.sub("*", form) for form in forms]


def _commonest_of_others(forms: Sequence[str], references: Sequence[str]) -> list[str]:
    everywhere = Counter(references)
    by_form: dict[str, Counter[str]] = {}
    for form, reference in zip(forms, references, strict=True):
        by_form.setdefault(form, Counter())[reference] += 1
    answers = []
    for form, reference in zip(forms, references, strict=True):
        others = (by_form[form] if by_form[form].total() > 1 else everywhere).copy()
        others[reference] -= 1
        commonest, count = others.most_common(1)[0]
        answers.append(commonest if count else "")  # a single question has no others to learn from
    return answers
