"""OCRBench's score."""

from __future__ import annotations

from ixtune.scores.case import Case, Part

FORMULAS = "Handwritten Mathematical Expression Recognition"
"""Question type with LaTeX answers."""


def ocrbench(case: Case) -> Part:
    """Return 1 if the answer contains a reference (Liu et al., OCRBench, 2023, sec. 3, and its script).

    Case, outer white space and line ends do not count. In formulas (`kind` is `FORMULAS`; in the released file, the
    100 questions from HME100k) no space counts, but case does. A blank reference, which every answer contains, is never
    found. The published figure is the sum over 1,000 questions, so 1,000 times this score.
    """
    wanted = [_plain(reference, case.kind) for reference in case.references]
    answer = _plain(case.answer, case.kind)
    return float(any(reference and reference in answer for reference in wanted)), 1.0


def _plain(text: str, kind: str) -> str:
    text = text.strip().replace("\n", " ")
    return text.replace(" ", "") if kind == FORMULAS else text.lower()
