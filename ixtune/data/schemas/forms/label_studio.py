"""Label Studio: tasks with annotations, or JSON-MIN, which is flat.

Text areas, choices, ratings and other values of the whole task are answers. Regions (boxes, polygons, masks, spans) and
relations are used only if `--columns` names their control, as JSON; otherwise the record is rejected.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.fields import listed
from ixtune.data.schemas.forms.form import Fields, Form, as_json, require_no_image
from ixtune.data.schemas.image_values import image_at
from ixtune.data.sources.source import Reading

_LOCAL_FILES = re.compile(r"/?data/local-files/?\?d=([^&]+)")
_UPLOAD = re.compile(r"/?data/(upload/.+)")
_MIN = ("annotation_id", "annotator", "lead_time")
_MIN_FIELDS = (*_MIN, "created_at", "updated_at", "agreement")
_ASKED = ("id", "question", "query", "prompt", "instruction", "text", "system", "hd_num")
# keys of a value that is a text
_TEXTS = ("text", "choices", "rating", "number", "taxonomy", "datetime", "selected")
# keys that place a region: rectangle and ellipse, polygon, brush, text span, paragraph, time series, relation
_PLACES = ("x", "points", "vertices", "rle", "start", "startOffset", "sequence", "from_id")


def _is_label_studio(record: Mapping[str, Any]) -> bool:
    task = isinstance(record.get("data"), Mapping) and ("annotations" in record or "completions" in record)
    return task or ("annotation_id" in record and sum(name in record for name in _MIN) > 1)


def _rewrite(fields: Fields, reading: Reading) -> Fields:
    regions: dict[str, list[Any]]
    if isinstance(fields.get("data"), Mapping):
        given = fields.get("annotations") or fields.get("completions") or []
        kept = [one for one in given if isinstance(one, Mapping) and not one.get("was_cancelled")]
        if not kept:
            raise RecordError(
                Reason.MISSING_FIELD,
                "every annotation of the task is cancelled" if given else "the task has no annotation",
                hint="annotate the task, or exclude it from the export",
            )
        rest = {name: fields.get(name) for name in ("meta", "predictions")}
        require_no_image(rest, "remove it from the export: only `data` and annotations are read")
        flat: Fields = {"id": fields.get("id"), **fields["data"]}
        values = [_texts(one) for one in kept]
        for name in dict.fromkeys(name for one in values for name in one):
            answers = list(dict.fromkeys(one[name] for one in values if name in one))
            flat[name] = answers[0] if len(answers) == 1 else answers
        controls = [name for one in values for name in one]
        regions = {}
        for one in kept:
            for name, places in _regions(one).items():
                regions.setdefault(name, []).append(as_json(places))
    else:
        flat = {name: value for name, value in fields.items() if name not in _MIN_FIELDS}
        regions = {name: [as_json(value)] for name, value in flat.items() if _has_regions(value)}
        flat = {name: _chosen(value) for name, value in flat.items() if name not in regions}
        controls = [name for name, value in flat.items() if name not in _ASKED and not image_at(value, name, None)]
    _use_regions(flat, regions, controls, reading)
    # the only control of a project is its answer, whatever its name
    if len(set(controls)) == 1 and "answer" not in flat and dict(reading.columns).get("answer", "answer") == "answer":
        flat["answer"] = flat.pop(controls[0])
    return {name: _served_file(value, reading.image_root) for name, value in flat.items()}


def _use_regions(flat: Fields, regions: Mapping[str, list[Any]], controls: list[str], reading: Reading) -> None:
    """Add the regions that `--columns` names as fields; raise for regions that nothing names."""
    columns = dict(reading.columns)
    for name, places in regions.items():
        if name in columns.values():
            flat[name] = places[0] if len(set(places)) == 1 else list(dict.fromkeys(places))
        elif not reading.answer_named:
            text = next(iter(controls), None)
            instead = f", or --columns answer={text} to leave them out" if text else ""
            raise RecordError(
                Reason.FIELD_NOT_USED,
                f"there are regions of {listed(regions)}, which are not used",
                hint=f"use --columns answer={name} to learn the regions as JSON{instead}",
            )


def _results(annotation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    given = annotation.get("result")
    return [one for one in given if isinstance(one, Mapping)] if isinstance(given, list) else []


def _texts(annotation: Mapping[str, Any]) -> dict[str, str]:
    """Return control name -> text for one annotation."""
    said: dict[str, list[str]] = {}
    for result in _results(annotation):
        value = result.get("value")
        if not isinstance(value, Mapping) or not value:
            continue
        key = next((key for key in _TEXTS if key in value), None)
        if key is None and _is_region(value):
            continue
        texts = value if key is None else value[key]
        for text in texts if isinstance(texts, list) else [texts]:
            said.setdefault(str(result.get("from_name")), []).append(as_json(text))
    return {name: "\n".join(texts) if len(texts) > 1 else texts[0] for name, texts in said.items()}


def _regions(annotation: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return control name -> regions of one annotation; relations between regions have no control."""
    found: dict[str, list[Any]] = {}
    for result in _results(annotation):
        value = result.get("value")
        if isinstance(value, Mapping):
            if _is_region(value) and not any(key in value for key in _TEXTS):
                found.setdefault(str(result.get("from_name")), []).append(value)
        elif _is_region(result):
            kept = ("from_id", "to_id", "direction", "labels")
            found.setdefault("relation", []).append({key: result[key] for key in kept if key in result})
    return found


def _is_region(value: Any) -> bool:
    return isinstance(value, Mapping) and any(key in value for key in _PLACES)


def _has_regions(value: Any) -> bool:
    """Return whether a JSON-MIN cell is a list of regions."""
    return isinstance(value, list) and any(_is_region(one) and not any(key in one for key in _TEXTS) for one in value)


def _chosen(value: Any) -> Any:
    """Return the value of a JSON-MIN cell: several choices are {"choices": [...]}, texts of regions have places."""
    if isinstance(value, Mapping) and isinstance(value.get("choices"), list):
        return "\n".join(map(str, value["choices"]))
    if isinstance(value, list) and value and all(_is_region(one) for one in value):
        texts = [one[key] for one in value for key in _TEXTS if key in one]
        return "\n".join(as_json(one) for text in texts for one in (text if isinstance(text, list) else [text]))
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


LABEL_STUDIO = Form("Label Studio tasks", _is_label_studio, _rewrite)
