"""Fields as the answer: Donut's and CORD's `ground_truth`, and a JSON file next to each image, as in SROIE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.fields import shown
from ixtune.data.schemas.forms.form import Fields, Form, as_json, require_no_image
from ixtune.data.schemas.value_paths import object_in_text
from ixtune.data.sources.source import Reading

_OF_THE_IMAGE = ("id", "image", "images")
_ASKED_OR_SAID = (
    *("question", "questions", "answer", "answers", "conversations", "messages", "texts", "qa", "qas", "query"),
    *("prompt", "ground_truth", "instruction", "response"),
)


def _truth(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    value = record.get("ground_truth")
    if isinstance(value, str) and '"gt_parse' in value:
        value = object_in_text(value)
    return value if isinstance(value, Mapping) and ("gt_parse" in value or "gt_parses" in value) else None


def _from_donut(fields: Fields, reading: Reading) -> Fields:
    del reading
    truth = _truth(fields)
    if truth is None:
        raise RecordError(
            Reason.MISSING_FIELD,
            f"`ground_truth` is {shown(fields.get('ground_truth'))}, without gt_parse or gt_parses",
            hint='write {"gt_parse": {...}} as JSON',
        )
    fields.pop("ground_truth")
    rest = {f"ground_truth.{name}": value for name, value in truth.items() if name not in ("gt_parse", "gt_parses")}
    require_no_image(rest, "remove it: only gt_parse is trained on")
    parses = truth.get("gt_parses")
    parses = [truth["gt_parse"]] if parses is None else parses
    if not isinstance(parses, list | tuple) or not parses:
        raise RecordError(Reason.MISSING_FIELD, f"`gt_parses` is {shown(parses)}", hint="write a list of answers")
    if not all(isinstance(one, Mapping) and set(one) == {"question", "answer"} for one in parses):
        return {**fields, "answer": [as_json(one) for one in parses] if len(parses) > 1 else as_json(parses[0])}
    # DocVQA in Donut's form: one question with all its answers, or several questions
    asked: dict[str, list[Any]] = {}
    for one in parses:
        asked.setdefault(str(one["question"]), []).append(one["answer"])
    *earlier, (question, answers) = asked.items()
    return {**fields, "history": earlier or None, "question": question, "answer": answers}


def has_only_fields(record: Mapping[str, Any]) -> bool:
    """Return whether the JSON next to an image has neither question nor answer, nor is it one text alone."""
    rest = [name for name in record if name not in _OF_THE_IMAGE]
    return bool(rest) and rest != ["text"] and not any(name in _ASKED_OR_SAID for name in rest)


def _from_fields(fields: Fields, reading: Reading) -> Fields:
    del reading
    answer = {name: value for name, value in fields.items() if name not in _OF_THE_IMAGE}
    require_no_image(answer, "remove it from the JSON: all of it becomes the answer")
    try:
        text = as_json(answer)
    except (TypeError, ValueError, RecursionError) as error:
        raise RecordError(Reason.BAD_FIELD, f"the fields are not JSON: {error}", hint="write them as JSON") from error
    return {name: fields[name] for name in _OF_THE_IMAGE if name in fields} | {"answer": text}


DONUT = Form("Donut annotations (gt_parse)", lambda record: _truth(record) is not None, _from_donut)
FIELDS = Form("a JSON file next to each image, used as the answer", lambda record: False, _from_fields)
