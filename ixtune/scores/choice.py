"""Multiple choice, as MMBench scores it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ixtune.scores.case import Case, Part

_ALONE = re.compile(r"\(?([A-Z])\)?\s*[.:)]?")
_AT_THE_START = re.compile(r"\(?([A-Z])(?:\)|[.:])\s")
_NAMED = re.compile(r"\b(?:answer|option|choice)(?:\s+is)?\s*:?\s*\(?([A-Z])\b(?!')", re.IGNORECASE)


def choice_accuracy(case: Case) -> Part:
    """1 if the option that the answer names is a reference's (MMBench, Liu et al. 2023, without its language model).

    An option is named by its letter (`B`, `(B)`, `B. the left one`, `the answer is B`) or by its text, if exactly one
    option's text stands in the answer. An answer that names none is wrong, and so is one that cannot be told.
    """
    named = chosen(case.answer, case.options)
    return float(named is not None and named in {reference.strip().upper() for reference in case.references}), 1.0


def chosen(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option an answer names, or None."""
    answer = answer.strip()
    match = _ALONE.fullmatch(answer) or _AT_THE_START.match(answer) or _NAMED.search(answer)
    if match and (not options or match[1].upper() in options):
        return match[1].upper()
    said = answer.lower()
    texts = {letter: text.strip().lower() for letter, text in options.items()}
    found = [letter for letter, text in texts.items() if text and re.search(rf"(?<!\w){re.escape(text)}(?!\w)", said)]
    # "left" stands in "left side" too: of options that contain one another the longest counts
    found = [one for one in found if not any(texts[one] in texts[other] for other in found if other != one)]
    return found[0] if len(found) == 1 else None
