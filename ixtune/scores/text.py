"""Scores that compare strings."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from ixtune.scores.case import Case, Part

_ANLS_THRESHOLD = 0.5
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(case: Case) -> Part:
    """Return 1 if the answer equals a reference apart from white space; case and punctuation count."""
    answer = _collapsed(case.answer)
    return float(any(answer == _collapsed(reference) for reference in case.references)), 1.0


def anls(case: Case) -> Part:
    """Return the Average Normalized Levenshtein Similarity (Biten et al., ICCV 2019) of DocVQA and InfographicVQA.

    The similarity is 1 - distance / length of the longer string, case and outer white space ignored; the best
    reference counts, and less than 0.5 is 0. At exactly 0.5 the paper gives 0 and the competition's own script
    0.5; this follows the script, whose figures are the published ones.
    """
    answer = _collapsed(case.answer.lower())
    best = max(
        Levenshtein.normalized_similarity(answer, _collapsed(reference.lower())) for reference in case.references
    )
    return (best if best >= _ANLS_THRESHOLD else 0.0), 1.0


def token_f1(case: Case) -> Part:
    """Return the F1 of common words (SQuAD 1.1, Rajpurkar et al. 2016), without case, punctuation and articles."""
    return max(_f1(_words(case.answer), _words(reference)) for reference in case.references), 1.0


def character_error_rate(case: Case) -> Part:
    """Return edits and characters of the reference: insertions, deletions and substitutions of characters (CER).

    White space is collapsed first. The reference with the lowest rate counts. The rate can exceed 1.
    """
    answer = _collapsed(case.answer)
    return _rate([(Levenshtein.distance(answer, _collapsed(r)), len(_collapsed(r))) for r in case.references])


def word_error_rate(case: Case) -> Part:
    """Return edits and words of the reference (WER; Morris, Maier, Green 2004); case and punctuation count."""
    answer = case.answer.split()
    return _rate([(Levenshtein.distance(answer, r.split()), len(r.split())) for r in case.references])


def _collapsed(text: str) -> str:
    return " ".join(text.split())


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _f1(answer: Sequence[str], reference: Sequence[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    common = sum((Counter(answer) & Counter(reference)).values())
    return 2 * common / (len(answer) + len(reference))


def _rate(parts: Sequence[tuple[int, int]]) -> Part:
    """Return the part with the lowest rate; an empty reference has length 1, so that an answer to it counts."""
    return min(((float(edits), float(max(length, 1))) for edits, length in parts), key=lambda part: part[0] / part[1])
