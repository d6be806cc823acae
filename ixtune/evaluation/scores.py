"""Scores of answers, and how sure one can be of them. Plain Python; every formula names its source."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True, slots=True)
class Share:
    """A share of successes with its 95 % interval."""

    successes: int
    trials: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """Successes / trials."""
        return self.successes / self.trials

    def __str__(self) -> str:
        """Such as `0.875 [0.83, 0.91]`."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def share(hits: Sequence[bool]) -> Share:
    """Share of True with the Wilson score interval at 95 % (Wilson 1927, eq. as in Brown, Cai, DasGupta 2001).

    Raises:
        ValueError: there is nothing to score.
    """
    if not hits:
        raise ValueError("no answers to score")
    n, successes = len(hits), sum(hits)
    z = NormalDist().inv_cdf(0.975)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Share(successes, n, max(0.0, centre - half), min(1.0, centre + half))


def exact_match(answer: str, reference: str) -> bool:
    """Equal after collapsing white space; case and punctuation count."""
    return " ".join(answer.split()) == " ".join(reference.split())


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
