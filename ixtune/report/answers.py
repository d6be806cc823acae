"""The parts of the page about single answers: examples with images, and the table of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ixtune.data.preview.markup import line, text
from ixtune.report import verdict
from ixtune.report.figures import change
from ixtune.report.groups import crops, value
from ixtune.report.images import Album, Drawn

TABLE_ROWS = 1000
"""Answers in the table; a page must still open on a phone."""
_PICTURES_EACH = 2
_FORMS = 30


def examples(judged: Mapping[str, Any], content: Mapping[str, Any], album: Album) -> str:
    """The worst regressions and the best gains, with images."""
    models = _models(content)
    if len(models) < 2:
        return ""
    first, last = text(models[0], 80), text(models[-1], 80)
    parts = []
    for key, heading, count, none in (
        ("regressions", "Worst regressions", judged["worse"], f"No answer of {last} scored less than that of {first}."),
        ("gains", "Best gains", judged["better"], f"No answer of {last} scored more than that of {first}."),
    ):
        found = judged[key]
        made = "".join(_example(one, content, models, album) for one in found)
        note = f"{len(found)} of {count:,}, the largest changes first." if found else none
        note += f" {text(verdict.only_last(models), 600)}"
        parts.append(
            f'<section><h2>{heading}</h2><p class="quiet">{note}</p><div class="examples">{made}</div></section>'
        )
    return "".join(parts)


def _example(one: Mapping[str, Any], content: Mapping[str, Any], models: Sequence[str], album: Album) -> str:
    answer = content["answers"][one["place"]]
    score = content["main_score"]
    hd_num = content["models"][0].get("hd_num")
    shown = "".join(_image(stored, hd_num, album) for stored in answer["pictures"][:_PICTURES_EACH])
    if (more := len(answer["pictures"]) - _PICTURES_EACH) > 0:
        shown += f'<p class="quiet">and {more} more images</p>'
    rows: list[tuple[str, str, float | None]] = [
        ("reference", " / ".join(map(str, answer["references"])), None),
        *((name, str(answer["answers"].get(name, "")), value(answer, name, score)) for name in (models[0], models[-1])),
    ]
    said = "".join(
        f'<div><dt>{text(name, 80)}</dt><dd dir="auto">{text(words, 600)}{_mark(scored)}</dd></div>'
        for name, words, scored in rows
    )
    return (
        f'<article class="example">{shown}<p class="asked" dir="auto">{text(answer["question"], 600)}</p>'
        f'<dl>{said}</dl><p class="path">{text(answer["id"], 200)}</p></article>'
    )


def _mark(scored: float | None) -> str:
    return "" if scored is None else f' <span class="tag">{scored:.2f}</span>'


def _image(stored: Mapping[str, Any], hd_num: int | None, album: Album) -> str:
    layout = (
        f"{stored['width']} x {stored['height']} pixels, {stored['rows']} x {stored['columns']} crops, "
        f"{stored['tokens']:,} tokens"
    )
    drawn = album.draw(stored, hd_num)
    if isinstance(drawn, Drawn):
        shown = f'<img src="{drawn.uri}" width="{drawn.width}" height="{drawn.height}" alt="image with its crops">'
    else:
        shown = f'<p class="tag warn">{text(drawn)}</p>'
    return f'<figure>{shown}<figcaption class="quiet">{layout}</figcaption></figure>'


def listing(content: Mapping[str, Any]) -> str:
    """The table of all answers of the models, to sort, search and filter."""
    answers, models, score = content["answers"], _models(content), content["main_score"]
    shown = answers[:TABLE_ROWS]
    forms = _common_forms(shown)
    limit = f"The first {TABLE_ROWS:,} of {len(answers):,} answers. " if len(answers) > TABLE_ROWS else ""
    columns = [("id", ""), ("question", ""), ("reference", "")]
    for name in models:
        columns += [(name, ""), (f"{name}: {verdict.title(score)}", "number")]
    columns += [("change", "number")] * (len(models) > 1) + [("crops", "number")]
    head = "".join(
        f'<th class="{kind}" aria-sort="none"><button type="button">{text(name, 60)}</button></th>'
        for name, kind in columns
    )
    body = "".join(_row(answer, models, score, forms, [name for name, _ in columns]) for answer in shown)
    return (
        '<section data-listing class="answers"><h2>All answers</h2>'
        f'<p class="quiet">{limit}Those of the controls are in the file of the evaluation.</p>'
        f"{_filters(forms, len(models) > 1)}"
        f'<table class="listing"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></section>'
    )


def _filters(forms: Mapping[str, int], with_change: bool) -> str:
    kinds = ("better", "worse", "same")
    changes = "".join(f'<option value="{kind}">{kind}</option>' for kind in kinds)
    options = "".join(f'<option value="{number}">{line(form, 70)}</option>' for form, number in forms.items())
    return (
        '<form class="filters"><label class="search">search <input type="search" data-filter="text:"></label>'
        + (
            f'<label>change <select data-filter="is:change"><option value="">all</option>{changes}</select></label>'
            if with_change
            else ""
        )
        + (
            f'<label>form <select data-filter="is:form"><option value="">all</option>{options}</select></label>'
            if len(forms) > 1
            else ""
        )
        + '<label>crops, at least <input type="number" min="0" data-filter="min:crops"></label>'
        '<button type="button" data-clear>clear</button><output></output></form>'
    )


def _row(
    answer: Mapping[str, Any], models: Sequence[str], score: str, forms: Mapping[str, int], labels: Sequence[str]
) -> str:
    by = change(answer, models[0], models[-1], score) if len(models) > 1 else None
    kind = "same" if not by else "better" if by > 0 else "worse"
    count = crops(answer)
    cells: list[tuple[str, str, float | None]] = [
        ("name", f"<b>{text(answer['id'], 200)}</b>", None),
        ("wide", text(answer["question"], 600), None),
        ("wide", text(" / ".join(map(str, answer["references"])), 600), None),
    ]
    for name in models:
        scored = value(answer, name, score)
        cells.append(("wide", text(answer["answers"].get(name, ""), 600), None))
        cells.append(("number", "" if scored is None else f"{scored:.2f}", -1 if scored is None else scored))
    if len(models) > 1:
        cells.append((f"number {kind}", "" if by is None else f"{by:+.2f}" if by else "0", by or 0))
    cells.append(("number", f"{count:,}", count))
    made = "".join(
        f'<td class="{style}" data-label="{text(label, 60)}"'
        + (' data-search dir="auto"' if number is None else f' data-value="{number:g}"')
        + f">{words}</td>"
        for (style, words, number), label in zip(cells, labels, strict=True)
    )
    return f'<tr data-change="{kind}" data-form="{forms.get(str(answer["form"]), -1)}" data-crops="{count}">{made}</tr>'


def _common_forms(answers: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for answer in answers:
        counts[str(answer["form"])] = counts.get(str(answer["form"]), 0) + 1
    common = sorted(counts, key=lambda form: -counts[form])[:_FORMS]
    return {form: number for number, form in enumerate(common)}


def _models(content: Mapping[str, Any]) -> list[str]:
    return [one["name"] for one in content["results"] if one["kind"] == "model"]
