"""Judge answers: the parts of a score, and whether the score fits the references."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ixtune.errors import IxtuneError
from ixtune.scores import SCORES
from ixtune.scores.case import Case, Part

_LISTED = 5  # questions in a message


def parts(score: str, cases: Iterable[Case]) -> list[Part]:
    """Return the numerator and denominator that each answer adds to a score.

    Raises:
        ValueError: A reference does not have the form that the score needs.
    """
    part = SCORES[score].part
    return [part(case) for case in cases]


def require_judgeable(scores: Sequence[str], cases: Sequence[tuple[str, Case]], *, where: str, hint: str) -> None:
    """Refuse a score that does not fit the references, before anything is trained or answered.

    Args:
        scores: Names of `SCORES`.
        cases: Name and case of each question, with any answer.
        where: The option or key that names the scores.
        hint: What to do about it.

    Raises:
        IxtuneError: A reference does not have the form that a score needs, such as JSON; lists some questions.
    """
    for score in scores:
        wrong = []
        for name, case in cases:
            try:
                SCORES[score].part(case)
            except ValueError as error:
                wrong.append(f"{name}: {error}")
        if wrong:
            raise IxtuneError(
                f"{score} cannot judge answers to {len(wrong):,} of {len(cases):,} questions",
                where=where,
                hint=hint,
                notes=wrong[:_LISTED],
            )
