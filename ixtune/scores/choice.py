"""Multiple choice, as MMBench scores it."""

from __future__ import annotations

import string
from collections.abc import Mapping

from ixtune.scores.case import Case, Part

_SIGNS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_NEITHER = "Z"  # what a model is to say if no option fits
# before more words a letter is mostly the article "A"
_WORDS_AFTER = 3


def choice_accuracy(case: Case) -> Part:
    """1 if the option that the answer names is a reference's (MMBench, Liu et al., ECCV 2024, by its rules alone).

    The rules are those by which VLMEvalKit, the benchmark's own tool, reads an answer before it would ask a language
    model, see `chosen`; none is asked here. An answer that names no option, or several, is wrong.
    """
    named = chosen(case.answer, case.options)
    return float(named is not None and named in {reference.strip().upper() for reference in case.references}), 1.0


def chosen(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option an answer names, or None.

    First by letter: of the options' letters exactly one is a word of the answer, and no more than three words follow.
    Then by text: exactly one option's text stands in the answer, which is at most twice as long as all texts together.
    `A dog` names A, for an article cannot be told from a letter, and `left side` names no one of left and left side.
    """
    words = answer.translate(_SIGNS).split()
    letters = [letter for letter in options or string.ascii_uppercase.replace(_NEITHER, "") if letter in words]
    if len(letters) == 1 and len(words) - 1 - words.index(letters[0]) <= _WORDS_AFTER:
        return letters[0]
    if not letters and _NEITHER in words:
        return None
    said = answer.lower()
    if len(said) > 2 * sum(map(len, options.values())):
        return None
    found = [letter for letter, text in options.items() if text.lower() in said]
    return found[0] if len(found) == 1 else None
