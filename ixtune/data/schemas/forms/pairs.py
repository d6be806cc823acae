"""Pairs of a question and an answer in a list: the_cauldron, FineVision, older ms-swift, nested question lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.forms.form import Fields, Form
from ixtune.data.schemas.turns import pair_keys, pairs_in
from ixtune.data.schemas.value_paths import object_in_text, rows_of_struct
from ixtune.data.sources.source import Reading

_NAMES = ("texts", "conversation", "qa_pairs", "qas", "qa", "questions")


def _field(record: Mapping[str, Any]) -> str | None:
    for name in _NAMES:
        value = _rows(record.get(name))
        if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping) and pair_keys(value[0]):
            return name
    return None


def _rows(value: Any) -> Any:
    if isinstance(value, str):
        value = object_in_text(value)
    return rows_of_struct(value) if isinstance(value, Mapping) else value


def _rewrite(fields: Fields, reading: Reading) -> Fields:
    del reading
    name = _field(fields)
    if name is None:
        raise RecordError(
            Reason.MISSING_FIELD,
            f"there are no pairs of a question and an answer in {' or '.join(f'`{one}`' for one in _NAMES[:2])}",
            hint='write a list such as [{"user": "...", "assistant": "..."}]',
        )
    value = _rows(fields.pop(name))
    *history, (question, answer) = pairs_in(value, name)
    for one in value:  # keep the remaining values in place, so that an image in them is not lost
        keys = pair_keys(one) or ()
        for key, inside in one.items():
            if key not in keys and inside is not None:
                fields.setdefault(f"{name}[].{key}", []).append(inside)
    return {**fields, "history": history or None, "question": question, "answer": answer}


PAIRS = Form("pairs of question and answer", lambda record: _field(record) is not None, _rewrite)
