"""Multiple choice, as MMBench scores it."""

from __future__ import annotations

import string
from collections.abc import Mapping

from ixtune.scores.case import Case, Part

_SIGNS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_NEITHER = "Z"  # the answer if no option fits
# a letter before more words than this is mostly the article "A"
_WORDS_AFTER = 3


def choice_accuracy(case: Case) -> Part:
    """Return 1 if the answer names the option of a reference (MMBench, Liu et al., ECCV 2024, rules only).

    The rules, see `chosen`, are those of VLMEvalKit, the benchmark's own tool, which asks a language model where they
    find nothing; this score does not. An answer that names no option, or several, is wrong.
    """
    named = chosen(case.answer, case.options)
    return float(named is not None and named in {reference.strip().upper() for reference in case.references}), 1.0


def chosen(answer: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of the option that an answer names, or None.

    First by letter: exactly one of the options' letters is a word of the answer, and at most three words follow it.
    Then by text: the answer contains exactly one option's text and is at most twice as long as all texts together.
    `A dog` names A, since an article looks like a letter; `left side` names neither `left` nor `left side`.
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
