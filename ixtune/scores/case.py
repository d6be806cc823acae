"""One question's answer beside what would have been right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Part = tuple[float, float]
"""What one answer adds to a score's numerator and denominator."""


@dataclass(frozen=True, slots=True)
class Case:
    """An answer to judge.

    Attributes:
        answer: what the model said.
        references: answers that are right; at least one.
        options: letter -> text of a multiple-choice question.
        kind: the benchmark's own type of the question, where a score depends on it.
    """

    answer: str
    references: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    kind: str = ""

    def __post_init__(self) -> None:
        """Refuse a question without a right answer.

        Raises:
            ValueError: there is no reference.
        """
        if not self.references:
            raise ValueError("a question without a reference cannot be scored")
