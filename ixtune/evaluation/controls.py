"""Controls beside a score: what a model gets that learned no more than the distribution of answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_NUMBER = re.compile(r"\d+")
# a word with a capital letter anywhere but at the beginning: a name, in most languages
_NAME = re.compile(r"(?<=[^\W\d_][ ,;:('\"])[A-Z]\w*(?:[ -][A-Z]\w*)*")
_ENOUGH = 8  # questions of a form on the average; with fewer, forms tell names apart rather than kinds of questions


def question_forms(questions: Sequence[str]) -> list[str]:
    """Each question with its numbers masked, so that questions of one kind fall together.

    Where that leaves few questions a form, names are masked as well, in all of them.
    """
    fine = _fine(questions)
    coarse = _coarse(fine)
    return coarse if len(fine) < _ENOUGH * len(set(fine)) and len(set(coarse)) > 1 else fine


def majority_answers(questions: Sequence[str], references: Sequence[str]) -> list[str]:
    """For each question the commonest reference among the OTHER questions of its form, or of all where there is none.

    Leaving the question itself out keeps a form that occurs once from answering itself. Forms are taken with and
    without names, and what is right more often counts: the control is to be hard to beat. A model that has learned no
    more than the distribution of answers does about as well as this.
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
        answers.append(commonest if count else "")  # a question alone has no others to learn from
    return answers
