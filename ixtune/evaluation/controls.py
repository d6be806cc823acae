"""Controls beside a score: what a model gets that learned no more than the distribution of answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence


def question_form(question: str) -> str:
    """A question with its numbers masked, so that questions of one kind fall together."""
    return re.sub(r"\d+", "#", question)


def majority_answers(questions: Sequence[str], references: Sequence[str]) -> list[str]:
    """For each question the commonest reference among the OTHER questions of its form, or of all forms where none is.

    Leaving the question itself out keeps a form that occurs once from answering itself. A model that has learned no
    more than the distribution of answers does about as well as this.
    """
    everywhere = Counter(references)
    by_form: dict[str, Counter[str]] = {}
    for question, reference in zip(questions, references, strict=True):
        by_form.setdefault(question_form(question), Counter())[reference] += 1
    answers = []
    for question, reference in zip(questions, references, strict=True):
        form = by_form[question_form(question)]
        others = (form if form.total() > 1 else everywhere).copy()
        others[reference] -= 1
        answers.append(others.most_common(1)[0][0])
    return answers
