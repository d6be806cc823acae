"""VQA accuracy with the answer normalization of its evaluation."""

from __future__ import annotations

import re

from ixtune.scores.case import Case, Part

_AGREEING = 3  # annotators who must agree for full score
_PUNCTUATION = ';/[]"{}()=+\\_-><@`!'
_PERIOD = re.compile(r"\.(?!\d)")
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd"
    " he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't"
    " mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't"
    " shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd"
    " something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're"
    " they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've"
    " who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've"
    " y'all'll you'd you'd've you'll you're you've"
).split()
# a word with one of its apostrophes forgotten -> the word; the last one is a slip of the published table
_APOSTROPHES = {
    word[:at] + word[at + 1 :]: word for word in _CONTRACTIONS for at, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd"}


def vqa_accuracy(case: Case) -> Part:
    """Return the mean of min(1, matches / 3), leaving out each annotator once (Antol et al., VQA, ICCV 2015).

    Both sides are normalized as in TextVQA's evaluation, see `normalized`. With fewer than four references there is no
    consensus to measure, and one match is fully right.
    """
    answer, references = normalized(case.answer), [normalized(reference) for reference in case.references]
    matches = references.count(answer)
    if len(references) <= _AGREEING:
        return float(matches > 0), 1.0
    # leaving out one annotator removes a match if that annotator agrees
    without_match = matches * min(1.0, (matches - 1) / _AGREEING)
    without_other = (len(references) - matches) * min(1.0, matches / _AGREEING)
    return (without_match + without_other) / len(references), 1.0


def normalized(text: str) -> str:
    """Return an answer as TextVQA's evaluation compares it (Singh et al., CVPR 2019; the evaluator of M4C in MMF).

    It removes case, commas, question marks, articles and periods outside numbers, turns number words into digits and
    restores missing apostrophes of contractions. Other punctuation is removed if white space is next to it anywhere,
    and becomes white space otherwise. Its oddities are kept, since published figures have them: a possessive is split
    (`joe's` is `joe 's`), so `what's` and `whats` differ. The evaluation of VQA v2 does not split it, and treats a
    comma between letters as white space.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.replace("\n", " ").replace("\t", " ").strip()
    plain = text
    for sign in _PUNCTUATION:
        plain = plain.replace(sign, "" if f"{sign} " in text or f" {sign}" in text else " ")
    words = [_NUMBERS.get(word, word) for word in _PERIOD.sub("", plain).split()]
    return " ".join(_APOSTROPHES.get(word, word) for word in words if word not in _ARTICLES)
