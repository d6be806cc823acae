"""Define an answer to judge, with its references."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Part = tuple[float, float]
"""Numerator and denominator that one answer adds to a score."""


@dataclass(frozen=True, slots=True)
class Case:
    """Answer to judge.

    Attributes:
        answer: The model's answer.
        references: Right answers; at least one.
        options: Letter -> text of a multiple-choice question.
        kind: The benchmark's own type of the question, if a score depends on it.
    """

    answer: str
    references: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    kind: str = ""

    def __post_init__(self) -> None:
        """Refuse a question without a right answer.

        Raises:
            ValueError: There is no reference.
        """
        if not self.references:
            raise ValueError("a question without a reference cannot be scored")
