"""Break scores down by kind and form of question, image size, crops and length of the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ixtune.scores.intervals import interval

Answer = Mapping[str, Any]
MOST_GROUPS = 8
"""Maximum groups of a dimension; the rest become one."""

_MEGAPIXELS = ((0.25, "up to 0.25 megapixels"), (0.5, "0.25 to 0.5"), (1, "0.5 to 1"), (2, "1 to 2"), (4, "2 to 4"))
_CROPS = ((1, "1"), (2, "2"), (4, "3 to 4"), (9, "5 to 9"), (16, "10 to 16"), (25, "17 to 25"), (40, "26 to 40"))
_WORDS = ((1, "1 word"), (2, "2 words"), (4, "3 to 4 words"), (8, "5 to 8 words"), (16, "9 to 16 words"))


def crops(answer: Answer) -> int:
    """Return the number of crops of all images of a question, without global views."""
    return sum(int(image["rows"]) * int(image["columns"]) for image in answer["pictures"])


def breakdown(answers: Sequence[Answer], names: Sequence[str], score: str) -> list[dict[str, Any]]:
    """Return groups with their size, and each result's mean with its 95 % interval, by every dimension that varies.

    Args:
        answers: Answers of an evaluation.
        names: Results to show.
        score: Score to use; error rates, too, are averaged over the answers.
    """
    found = []
    for dimension, key in _DIMENSIONS.items():
        groups = _grouped(answers, key)
        if len(groups) < 2:
            continue
        rows = []
        for label, members in groups:
            results = {name: _score(members, name, score) for name in names}
            rows.append({"group": label, "n": len(members), "results": results})
        found.append({"dimension": dimension, "groups": rows})
    return found


def value(answer: Answer, name: str, score: str) -> float | None:
    """Return the score of one answer; None if it was not scored."""
    found = answer["scores"].get(name, {}).get(score)
    return None if found is None else float(found)


def _score(members: Sequence[Answer], name: str, score: str) -> dict[str, float] | None:
    scored = [(answer, one) for answer in members if (one := value(answer, name, score)) is not None]
    if not scored:
        return None
    found = interval([(one, 1.0) for _, one in scored], [about(answer) for answer, _ in scored])
    return {"value": found.value, "low": found.low, "high": found.high}


def about(answer: Answer) -> tuple[str, ...]:
    """Return the images of a question, or the question itself if it has none."""
    paths = tuple(str(image["path"]) for image in answer["pictures"] if image.get("path"))
    return paths or (str(answer["id"]), str(answer["question"]))


def _grouped(answers: Sequence[Answer], key: Callable[[Answer], tuple[float, str]]) -> list[tuple[str, list[Answer]]]:
    """Return groups by rank; if there are too many, the largest ones and one group of the others."""
    found: dict[tuple[float, str], list[Answer]] = {}
    for answer in answers:
        found.setdefault(key(answer), []).append(answer)
    most = MOST_GROUPS if len(found) <= MOST_GROUPS else MOST_GROUPS - 1
    kept = sorted(found, key=lambda one: -len(found[one]))[:most]
    order = sorted(kept, key=lambda one: (one[0], -len(found[one]), one[1]))
    groups = [(label, found[rank, label]) for rank, label in order]
    rest = [answer for one, members in found.items() if one not in kept for answer in members]
    return [*groups, (f"{len(found) - len(kept)} others", rest)] if rest else groups


def _binned(amount: float, bins: Sequence[tuple[float, str]], above: str) -> tuple[float, str]:
    return next(((limit, label) for limit, label in bins if amount <= limit), (float("inf"), above))


def _size(answer: Answer) -> tuple[float, str]:
    if not answer["pictures"]:
        return -1, "no image"
    largest = max(int(image["width"]) * int(image["height"]) for image in answer["pictures"])
    return _binned(largest / 1e6, _MEGAPIXELS, "above 4")


def _crops(answer: Answer) -> tuple[float, str]:
    return _binned(crops(answer), _CROPS, "above 40") if answer["pictures"] else (-1, "no image")


def _length(answer: Answer) -> tuple[float, str]:
    shortest = min((len(str(reference).split()) for reference in answer["references"]), default=0)
    return _binned(shortest, _WORDS, "above 16 words")


_DIMENSIONS: dict[str, Callable[[Answer], tuple[float, str]]] = {
    "kind of question": lambda answer: (0, str(answer.get("kind") or "none given")),
    "form of the question": lambda answer: (0, str(answer["form"])),
    "size of the image": _size,
    "number of crops": _crops,
    "length of the answer": _length,
}
