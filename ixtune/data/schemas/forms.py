"""Convert the record formats of other tools to the fields of one of our schemas.

A form is detected from the first records and rewrites each record independently; the schema readers, the
checks for lost images and `--columns` then work on the result. docs/data-forms.md lists where each comes from.
"""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.fields import is_missing, shown
from ixtune.data.schemas.image_values import image_at
from ixtune.data.schemas.turns import pair_keys, pairs_in
from ixtune.data.schemas.value_paths import object_in_text, rows_of_struct
from ixtune.data.sources.source import Reading, Schema

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Form:
    """The record format of a tool.

    Attributes:
        name: Name in messages.
        is_in: Whether a record is of this form.
        rewrite: Function that converts the fields of a record to those of a schema.
        schema: The schema; None if it is detected from the rewritten fields.
    """

    name: str
    is_in: Callable[[Mapping[str, Any]], bool]
    rewrite: Callable[[Fields, Reading], Fields]
    schema: Schema | None = Schema.COLUMNS


def form_of(records: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the key of the form of some records in `FORMS`, None if they have none.

    One record is enough where every record that says anything is of the form or has none of its fields.
    """
    for key, form in FORMS.items():
        if any(form.is_in(record) for record in records):
            return key
    return None


# pairs of a question and an answer: the_cauldron and FineVision, older ms-swift, nested question lists

_PAIR_FIELDS = ("texts", "conversation", "qa_pairs", "qas", "qa", "questions")


def _pair_field(record: Mapping[str, Any]) -> str | None:
    for name in _PAIR_FIELDS:
        value = record.get(name)
        if isinstance(value, str):
            value = object_in_text(value)
        if isinstance(value, Mapping):
            value = rows_of_struct(value)
        if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping) and pair_keys(value[0]):
            return name
    return None


def _from_pairs(fields: Fields, reading: Reading) -> Fields:
    del reading
    name = _pair_field(fields)
    if name is None:
        raise RecordError(
            Reason.MISSING_FIELD,
            f"there are no pairs of a question and an answer in {' or '.join(f'`{one}`' for one in _PAIR_FIELDS[:2])}",
            hint='write a list such as [{"user": "...", "assistant": "..."}]',
        )
    value = fields.pop(name)
    value = (
        object_in_text(value)
        if isinstance(value, str)
        else rows_of_struct(value)
        if isinstance(value, Mapping)
        else value
    )
    *history, (question, answer) = pairs_in(value, name)
    for one in value:  # keep the remaining values in place, so that an image in them is not lost
        keys = pair_keys(one) or ()
        for key, inside in one.items():
            if key not in keys and inside is not None:
                fields.setdefault(f"{name}[].{key}", []).append(inside)
    return {**fields, "history": history or None, "question": question, "answer": answer}


# Donut and CORD: {"image" or "file_name", "ground_truth": {"gt_parse": {...}} or its JSON}


def _gt(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    value = record.get("ground_truth")
    if isinstance(value, str) and '"gt_parse' in value:
        value = object_in_text(value)
    return value if isinstance(value, Mapping) and ("gt_parse" in value or "gt_parses" in value) else None


def _from_donut(fields: Fields, reading: Reading) -> Fields:
    del reading
    truth = _gt(fields)
    if truth is None:
        raise RecordError(
            Reason.MISSING_FIELD,
            f"`ground_truth` is {shown(fields.get('ground_truth'))}, without gt_parse or gt_parses",
            hint='write {"gt_parse": {...}} as JSON',
        )
    fields.pop("ground_truth")
    rest = {f"ground_truth.{name}": value for name, value in truth.items() if name not in ("gt_parse", "gt_parses")}
    _require_no_image(rest, "take it out: only gt_parse is learned")
    parses = truth.get("gt_parses")
    parses = [truth["gt_parse"]] if parses is None else parses
    if not isinstance(parses, list | tuple) or not parses:
        raise RecordError(Reason.MISSING_FIELD, f"`gt_parses` is {shown(parses)}", hint="write a list of answers")
    if not all(isinstance(one, Mapping) and set(one) == {"question", "answer"} for one in parses):
        return {**fields, "answer": [_json(one) for one in parses] if len(parses) > 1 else _json(parses[0])}
    # DocVQA in Donut's form: one question with all its answers, or several questions
    asked: dict[str, list[Any]] = {}
    for one in parses:
        asked.setdefault(str(one["question"]), []).append(one["answer"])
    *earlier, (question, answers) = asked.items()
    history = [(text, said[0]) for text, said in earlier]
    return {**fields, "history": history or None, "question": question, "answer": answers}


def _require_no_image(fields: Mapping[str, Any], hint: str) -> None:
    """Raise if one of some fields holds or names an image, which would become text or be lost."""
    for name, value in fields.items():
        if place := image_at(value, name, None, addresses=False, names=False):
            raise RecordError(
                Reason.IMAGE_NOT_USED, f"`{place}` holds or names an image, and it is not read", hint=hint
            )


def _json(value: Any) -> str:
    """Return an answer as JSON with its key order kept; a text stays unchanged."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# Label Studio: tasks with annotations, or JSON-MIN, which is flat

_LOCAL_FILES = re.compile(r"/?data/local-files/?\?d=([^&]+)")
_UPLOAD = re.compile(r"/?data/(upload/.+)")
_MIN = ("annotation_id", "annotator", "lead_time")
_MIN_FIELDS = (*_MIN, "created_at", "updated_at", "agreement")
_ASKED = ("id", "question", "query", "prompt", "instruction", "text", "system", "hd_num")


def _is_label_studio(record: Mapping[str, Any]) -> bool:
    task = isinstance(record.get("data"), Mapping) and ("annotations" in record or "completions" in record)
    return task or ("annotation_id" in record and sum(name in record for name in _MIN) > 1)


def _from_label_studio(fields: Fields, reading: Reading) -> Fields:
    if isinstance(fields.get("data"), Mapping):
        given = fields.get("annotations") or fields.get("completions") or []
        kept = [one for one in given if isinstance(one, Mapping) and not one.get("was_cancelled")]
        if not kept:
            raise RecordError(
                Reason.MISSING_FIELD,
                "every annotation of the task is cancelled" if given else "the task has no annotation",
                hint="annotate the task, or leave it out of the export",
            )
        rest = {name: fields.get(name) for name in ("meta", "predictions")}
        _require_no_image(rest, "take it out of the export: only `data` and annotations are read")
        flat: Fields = {"id": fields.get("id"), **fields["data"]}
        values = [_results(one) for one in kept]
        for name in dict.fromkeys(name for one in values for name in one):
            answers = list(dict.fromkeys(one[name] for one in values if name in one))
            flat[name] = answers[0] if len(answers) == 1 else answers
        controls = [name for one in values for name in one]
    else:
        flat = {name: _chosen(value) for name, value in fields.items() if name not in _MIN_FIELDS}
        controls = [name for name, value in flat.items() if name not in _ASKED and not image_at(value, name, None)]
    # the only control of a project is its answer, whatever its name
    if len(set(controls)) == 1 and "answer" not in flat and dict(reading.columns).get("answer", "answer") == "answer":
        flat["answer"] = flat.pop(controls[0])
    return {name: _served_file(value, reading.image_root) for name, value in flat.items()}


def _results(annotation: Mapping[str, Any]) -> dict[str, str]:
    """Return control name -> value for one annotation."""
    said: dict[str, list[str]] = {}
    for result in annotation.get("result") or ():
        value = result.get("value") if isinstance(result, Mapping) else None
        if not isinstance(value, Mapping):
            continue
        texts = next((value[key] for key in ("text", "choices", "rating", "number", "taxonomy") if key in value), None)
        if texts is None:  # boxes and masks are regions, and no answer
            continue
        for text in texts if isinstance(texts, list) else [texts]:
            said.setdefault(str(result.get("from_name")), []).append(text if isinstance(text, str) else _json(text))
    return {name: "\n".join(texts) if len(texts) > 1 else texts[0] for name, texts in said.items() if texts}


def _chosen(value: Any) -> Any:
    """Return the value of a JSON-MIN cell, in which several choices are {"choices": [...]}."""
    if isinstance(value, Mapping) and isinstance(value.get("choices"), list):
        return "\n".join(map(str, value["choices"]))
    return value


def _served_file(value: Any, root: Path | None) -> Any:
    """Return the path, below the image root, of a file that Label Studio served."""
    if isinstance(value, list):
        return [_served_file(one, root) for one in value]
    if not isinstance(value, str):
        return value
    if local := _LOCAL_FILES.fullmatch(value):
        return urllib.parse.unquote(local[1])
    if upload := _UPLOAD.fullmatch(value):
        path = urllib.parse.unquote(upload[1])
        parts = path.split("/")
        # with --image-root upload, or with the files of one project
        shorter = ["/".join(parts[at:]) for at in range(len(parts))]
        return next((one for one in shorter if root is not None and (root / one).is_file()), path)
    return value


# TRL: {"prompt": [messages], "completion": [messages]}


def _is_prompt_completion(record: Mapping[str, Any]) -> bool:
    return all(
        isinstance(part := record.get(name), list) and part and isinstance(part[0], Mapping) and "role" in part[0]
        for name in ("prompt", "completion")
    )


def _from_prompt_completion(fields: Fields, reading: Reading) -> Fields:
    del reading
    prompt, completion = fields.pop("prompt", None), fields.pop("completion", None)
    if not isinstance(prompt, list) or not isinstance(completion, list):
        raise RecordError(
            Reason.BAD_CONVERSATIONS,
            f"`prompt` is {shown(prompt)}, `completion` {shown(completion)}",
            hint='write lists of messages, [{"role": ..., "content": ...}]',
        )
    return {**fields, "messages": [*prompt, *completion]}


# MiniCPM-V: {"image": {"<image_00>": path, ...}, "conversations": [...]}


def _is_minicpm(record: Mapping[str, Any]) -> bool:
    image = record.get("image")
    return isinstance(image, Mapping) and bool(image) and all(str(key).startswith("<") for key in image)


def _from_minicpm(fields: Fields, reading: Reading) -> Fields:
    del reading
    if not _is_minicpm(fields):
        return fields
    images = {name: value for name, value in fields["image"].items() if not is_missing(value)}
    marks = re.compile("|".join(re.escape(name) for name in sorted(images, key=len, reverse=True)))
    order: list[str] = []

    def found(match: re.Match[str]) -> str:
        order.append(match.group())
        return "<image>"

    def marked(value: Any) -> Any:
        if isinstance(value, str):
            return marks.sub(found, value)
        if isinstance(value, Mapping):
            return {name: marked(one) if name in ("content", "value", "text") else one for name, one in value.items()}
        return [marked(one) for one in value] if isinstance(value, list | tuple) else value

    for name in ("conversations", "messages"):
        if name in fields:
            fields[name] = marked(fields[name])
    if order and (missing := [name for name in images if name not in order]):
        raise RecordError(
            Reason.TOO_FEW_PLACEHOLDERS,
            f"{missing[0]} of `image` stands nowhere in the conversation",
            hint="write each placeholder of `image` where its image belongs",
        )
    return {**fields, "image": [images[name] for name in order or images]}


# ms-swift: <ref-object> and <bbox> in the texts refer to entries of `objects`

_GROUNDED = ("messages", "conversations", "query", "response")
_OBJECT_MARK = re.compile(r"<ref-object>|<bbox>")


def _is_swift_grounding(record: Mapping[str, Any]) -> bool:
    value = record.get("objects")
    value = object_in_text(value) if isinstance(value, str) else value
    in_texts = any(name in record for name in _GROUNDED)
    return in_texts and isinstance(value, Mapping) and ("bbox" in value or "ref" in value)


def _from_swift_grounding(fields: Fields, reading: Reading) -> Fields:
    del reading
    if not _is_swift_grounding(fields):
        return fields
    objects = fields.pop("objects")
    objects = object_in_text(objects) if isinstance(objects, str) else objects
    refs, boxes = list(objects.get("ref") or ()), list(objects.get("bbox") or ())
    left = {"<ref-object>": iter(refs), "<bbox>": iter(boxes)}

    def filled(match: re.Match[str]) -> str:
        one = next(left[match.group()], None)
        if one is None:
            raise RecordError(
                Reason.FIELD_NOT_USED,
                f"there are more {match.group()} in the texts than entries in `objects`",
                hint="give `objects` one entry for each mark in the texts",
            )
        return one if isinstance(one, str) else _json(one)

    def written(value: Any) -> Any:
        if isinstance(value, str):
            return _OBJECT_MARK.sub(filled, value)
        if isinstance(value, Mapping):
            return {name: written(one) if name in ("content", "value", "text") else one for name, one in value.items()}
        return [written(one) for one in value] if isinstance(value, list | tuple) else value

    for name in _GROUNDED:
        if name in fields:
            fields[name] = written(fields[name])
    if any(next(rest, None) is not None for rest in left.values()):
        raise RecordError(
            Reason.FIELD_NOT_USED,
            "`objects` has more entries than there are <ref-object> and <bbox> in the texts",
            hint="write a mark for each entry, or remove what the texts do not name",
        )
    return fields


# a JSON file next to each image, as in SROIE: its fields are the answer

FIELDS_AS_JSON = "fields-as-json"
_OF_THE_IMAGE = ("id", "image", "images")
_ASKED_OR_SAID = (
    *("question", "questions", "answer", "answers", "conversations", "messages", "texts", "qa", "qas", "query"),
    *("prompt", "ground_truth", "instruction", "response"),
)


def has_only_fields(record: Mapping[str, Any]) -> bool:
    """Return whether the JSON beside an image has neither question nor answer, nor is it one text alone."""
    rest = [name for name in record if name not in _OF_THE_IMAGE]
    return bool(rest) and rest != ["text"] and not any(name in _ASKED_OR_SAID for name in rest)


def _from_fields(fields: Fields, reading: Reading) -> Fields:
    del reading
    answer = {name: value for name, value in fields.items() if name not in _OF_THE_IMAGE}
    _require_no_image(answer, "take it out of the JSON: all of it becomes the answer")
    try:
        text = _json(answer)
    except (TypeError, ValueError, RecursionError) as error:
        raise RecordError(Reason.BAD_FIELD, f"the fields are no JSON: {error}", hint="write them as JSON") from error
    return {name: fields[name] for name in _OF_THE_IMAGE if name in fields} | {"answer": text}


FORMS: dict[str, Form] = {
    "label-studio": Form("Label Studio tasks", _is_label_studio, _from_label_studio),
    "donut": Form("Donut annotations (gt_parse)", lambda record: _gt(record) is not None, _from_donut),
    "prompt-completion": Form(
        "TRL prompts and completions", _is_prompt_completion, _from_prompt_completion, Schema.OPENAI
    ),
    "minicpm": Form("MiniCPM-V images by placeholder", _is_minicpm, _from_minicpm, None),
    "swift-grounding": Form(
        "ms-swift grounding, boxes written as `objects` has them", _is_swift_grounding, _from_swift_grounding, None
    ),
    FIELDS_AS_JSON: Form("a JSON beside each image, all of it the answer", lambda record: False, _from_fields),
    "pairs": Form("pairs of question and answer", lambda record: _pair_field(record) is not None, _from_pairs),
}
