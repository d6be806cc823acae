"""Put the figures of an evaluation into words: better or not, and whether the images were used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ixtune.scores import SCORES

GOOD, BAD, OPEN = "good", "bad", "open"
_SIGNIFICANT = 0.05
SWAPPED, MAJORITY = "images swapped", "majority answer"


def title(score: str) -> str:
    """Return the heading of a score."""
    return SCORES[score].title if score in SCORES else score.replace("_", " ")


def sign(score: str) -> int:
    """Return 1, or -1 for error rates."""
    return 1 if score not in SCORES or SCORES[score].higher_is_better else -1


def verdicts(evaluation: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return a sentence for each model against the first one and against each control."""
    score = evaluation["main_score"]
    models = [one["name"] for one in evaluation["results"] if one["kind"] == "model"]
    controls = [one["name"] for one in evaluation["results"] if one["kind"] == "control"]
    found = [_against_model(evaluation, model, models[0], score) for model in models[1:]]
    judged = models[1:] or models
    found += [
        _against_control(evaluation, model, control, score)
        for model in judged
        for control in controls
        if MAJORITY in control or len(judged) == 1 or control.startswith(f"{model},")
    ]
    if not controls:
        found.append(
            {
                "kind": OPEN,
                "text": "No controls were run, so the figures do not show whether the images were used.",
            }
        )
    return found


def only_last(models: Sequence[str]) -> str:
    """Return a note for lists that show two of more than two models; empty otherwise."""
    if len(models) <= 2:
        return ""
    verb = "is" if len(models) == 3 else "are"
    return f"Of {models[-1]} against {models[0]} only: {', '.join(models[1:-1])} {verb} not in this list."


def comparison(evaluation: Mapping[str, Any], name: str, than: str, score: str) -> Mapping[str, Any] | None:
    """Return the paired comparison of two results, if there is one."""
    for one in evaluation["comparisons"]:
        if (one["name"], one["than"], one["score"]) == (name, than, score):
            return dict(one)
    return None


def in_words(one: Mapping[str, Any]) -> str:
    """Return a paired difference with its interval and p-value."""
    p = one.get("p_value")
    chance = "" if p is None else f", p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"
    return f"{one['difference']:+.3f} (95 % interval {one['low']:+.3f} to {one['high']:+.3f}{chance})"


def _against_model(evaluation: Mapping[str, Any], model: str, first: str, score: str) -> dict[str, str]:
    paired = comparison(evaluation, model, first, score)
    if paired is None:
        return {"kind": OPEN, "text": f"The evaluation holds no paired comparison of {model} with {first}."}
    low, high = sorted((sign(score) * paired["low"], sign(score) * paired["high"]))
    figure = f"{title(score)} {in_words(paired)}"
    if low > 0 and _is_significant(paired):
        return {"kind": GOOD, "text": f"{model} is better than {first}: {figure}."}
    if high < 0 and _is_significant(paired):
        return {"kind": BAD, "text": f"{model} is worse than {first}: {figure}."}
    return {
        "kind": OPEN,
        "text": f"No clear difference between {model} and {first} on these records: {figure}.",
    }


def _against_control(evaluation: Mapping[str, Any], model: str, control: str, score: str) -> dict[str, str]:
    own, other = (_score_of(evaluation["results"], name, score) for name in (model, control))
    paired = comparison(evaluation, model, control, score)
    if own is None or other is None:
        return {"kind": OPEN, "text": f"{model} and {control} cannot be compared: one of them has no {title(score)}."}
    if paired is not None:
        beats = _is_significant(paired) and min(sign(score) * paired["low"], sign(score) * paired["high"]) > 0
        figure = f"{title(score)} {in_words(paired)}"
    else:
        worst = own["low"] if sign(score) > 0 else own["high"]
        beats = sign(score) * (worst - other["value"]) > 0
        figure = (
            f"{title(score)} {own['value']:.3f} (95 % interval {own['low']:.3f} to {own['high']:.3f}) "
            f"against {other['value']:.3f}"
        )
    if SWAPPED in control:
        yes = f"{model} uses the images: it beats itself with the images swapped"
        no = f"{model} is not shown to use the images: with the images of other records it does not do measurably worse"
    else:
        yes = f"{model} beats the {control}"
        no = f"{model} does not beat the {control}: it may have learned no more than which answers are common"
    return {"kind": GOOD if beats else BAD, "text": f"{yes if beats else no}; {figure}."}


def _is_significant(paired: Mapping[str, Any]) -> bool:
    """Return whether the permutation test agrees; with few records, the bootstrap's interval is too narrow."""
    p = paired.get("p_value")
    return p is None or bool(p < _SIGNIFICANT)


def _score_of(results: Sequence[Mapping[str, Any]], name: str, score: str) -> Mapping[str, Any] | None:
    for one in results:
        if one["name"] == name:
            found: Mapping[str, Any] | None = one["scores"].get(score)
            return found
    return None
