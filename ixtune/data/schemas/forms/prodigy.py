"""Prodigy: tasks with an annotator's decision in `answer`, which is accept, reject or ignore and no answer to learn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.fields import listed, shown
from ixtune.data.schemas.forms.form import Fields, Form, as_json
from ixtune.data.sources.source import Reading

_DECISIONS = ("accept", "reject", "ignore")
_HASHES = ("_task_hash", "_input_hash", "_session_id", "_view_id")
_REGIONS = ("spans", "relations", "audio_spans")
# the field that a text input writes to, by default
_INPUT = "user_input"


def _is_prodigy(record: Mapping[str, Any]) -> bool:
    return record.get("answer") in _DECISIONS and any(name in record for name in _HASHES)


def _rewrite(fields: Fields, reading: Reading) -> Fields:
    decision = fields.pop("answer", None)
    if decision != "accept":
        raise RecordError(
            Reason.FIELD_NOT_USED,
            f"`answer` is {shown(decision)}: the annotator did not accept the task",
            hint="leave such tasks out of the export",
        )
    regions = [name for name in _REGIONS if fields.get(name)]
    if regions and not reading.answer_named:
        raise RecordError(
            Reason.FIELD_NOT_USED,
            f"there are {listed(regions)}, which are not used",
            hint=f"use --columns answer={regions[0]} to learn them as JSON, or name another field",
        )
    for name in regions:
        fields[name] = as_json(fields[name])
    options, accepted = fields.pop("options", None), fields.pop("accept", None)
    if accepted is not None:
        texts = {str(one.get("id")): one.get("text") for one in options or () if isinstance(one, Mapping)}
        fields["answer"] = "\n".join(str(texts.get(str(one)) or one) for one in accepted)
        fields["options"] = list(filter(None, texts.values())) or None
    elif _INPUT in fields:
        fields["answer"] = fields.pop(_INPUT)
    return fields


PRODIGY = Form("Prodigy tasks", _is_prodigy, _rewrite)
