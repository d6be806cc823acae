"""Questions that are asked several times, with their options in different orders."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from ixtune.scores.case import Part


def all_right(parts: Sequence[Part], groups: Sequence[Hashable]) -> list[Part]:
    """Return the worst part of each question's answers (CircularEval of MMBench, Liu et al., ECCV 2024).

    Args:
        parts: Part of every answer.
        groups: Question of every answer.

    Returns:
        The parts, in the order in which the questions first occur.
    """
    worst: dict[Hashable, Part] = {}
    for part, group in zip(parts, groups, strict=True):
        before = worst.setdefault(group, part)
        if part[0] / part[1] < before[0] / before[1]:
            worst[group] = part
    return list(worst.values())
