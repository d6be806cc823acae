"""Values of the page's parts about single answers: examples with images, and the table of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ixtune.pages.kit import line
from ixtune.report import verdict
from ixtune.report.figures import change
from ixtune.report.groups import crops, value
from ixtune.report.images import Album, Drawn

TABLE_ROWS = 1000
"""Answers in the table; a page must still open on a phone."""
_IMAGES_EACH = 2
_FORMS = 30


def examples(judged: Mapping[str, Any], content: Mapping[str, Any], album: Album) -> list[dict[str, Any]]:
    """Return heading, note and answers of the worst regressions and the best gains; none with a single model."""
    models = _models(content)
    if len(models) < 2:
        return []
    parts = []
    for key, heading, count, less_or_more in (
        ("regressions", "Worst regressions", judged["worse"], "less"),
        ("gains", "Best gains", judged["better"], "more"),
    ):
        found = judged[key]
        note = f"{len(found)} of {count:,}, the largest changes first."
        if not found:
            note = f"No answer of {line(models[-1], 80)} scored {less_or_more} than that of {line(models[0], 80)}."
        answers = [_example(one, content, models, album) for one in found]
        parts.append({"heading": heading, "note": f"{note} {verdict.only_last(models)}", "answers": answers})
    return parts


def _example(one: Mapping[str, Any], content: Mapping[str, Any], models: Sequence[str], album: Album) -> dict[str, Any]:
    answer = content["answers"][one["place"]]
    score, hd_num = content["main_score"], content["models"][0].get("hd_num")
    said: list[tuple[str, str, float | None]] = [("reference", " / ".join(map(str, answer["references"])), None)]
    said += [
        (name, str(answer["answers"].get(name, "")), value(answer, name, score)) for name in (models[0], models[-1])
    ]
    return {
        "id": answer["id"],
        "question": answer["question"],
        "images": [_image(stored, hd_num, album) for stored in answer["pictures"][:_IMAGES_EACH]],
        "more": max(0, len(answer["pictures"]) - _IMAGES_EACH),
        "said": said,
    }


def _image(stored: Mapping[str, Any], hd_num: int | None, album: Album) -> dict[str, Any]:
    drawn = album.draw(stored, hd_num)
    layout = (
        f"{stored['width']} x {stored['height']} pixels, {stored['rows']} x {stored['columns']} crops, "
        f"{stored['tokens']:,} tokens"
    )
    found = {"drawn": drawn, "problem": ""} if isinstance(drawn, Drawn) else {"drawn": None, "problem": drawn}
    return {**found, "layout": layout}


def listing(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return columns, filters and rows of the table of all answers of the models."""
    answers, models, score = content["answers"], _models(content), content["main_score"]
    shown = answers[:TABLE_ROWS]
    forms = _common_forms(shown)
    columns = [("id", ""), ("question", ""), ("reference", "")]
    for name in models:
        columns += [(name, ""), (f"{name}: {verdict.title(score)}", "number")]
    columns += [("change", "number")] * (len(models) > 1) + [("crops", "number")]
    return {
        "total": len(answers),
        "columns": columns,
        "forms": [(number, line(form, 70)) for form, number in forms.items()],
        "with_change": len(models) > 1,
        "rows": [_row(answer, models, score, forms) for answer in shown],
    }


def _row(answer: Mapping[str, Any], models: Sequence[str], score: str, forms: Mapping[str, int]) -> dict[str, Any]:
    """Return a row whose cells are class, text and the number it is sorted by, None for text."""
    by = change(answer, models[0], models[-1], score) if len(models) > 1 else None
    kind = "same" if not by else "better" if by > 0 else "worse"
    count = crops(answer)
    cells: list[tuple[str, str, float | None]] = [
        ("wide", str(answer["question"]), None),
        ("wide", " / ".join(map(str, answer["references"])), None),
    ]
    for name in models:
        scored = value(answer, name, score)
        cells.append(("wide", str(answer["answers"].get(name, "")), None))
        cells.append(("number", "" if scored is None else f"{scored:.2f}", -1 if scored is None else scored))
    if len(models) > 1:
        cells.append((f"number {kind}", "" if by is None else f"{by:+.2f}" if by else "0", by or 0))
    cells.append(("number", f"{count:,}", count))
    form = forms.get(str(answer["form"]), -1)
    return {"id": answer["id"], "change": kind, "form": form, "crops": count, "cells": cells}


def _common_forms(answers: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for answer in answers:
        counts[str(answer["form"])] = counts.get(str(answer["form"]), 0) + 1
    common = sorted(counts, key=lambda form: -counts[form])[:_FORMS]
    return {form: number for number, form in enumerate(common)}


def _models(content: Mapping[str, Any]) -> list[str]:
    return [one["name"] for one in content["results"] if one["kind"] == "model"]
