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
# a record with one of these has its own question, answer or conversation
_OWN = {"question", "query", "prompt", "instruction", "answer", "response", "conversations", "messages", "history"}


def _field(record: Mapping[str, Any]) -> str | None:
    """Return the field with the pairs: one of the usual names, or the only such list of a record without question."""
    named = next((name for name in _NAMES if _has_pairs(record.get(name))), None)
    if named is not None or not _OWN.isdisjoint(record):
        return named
    others = [name for name, value in record.items() if _has_pairs(value)]
    return others[0] if len(others) == 1 else None


def _has_pairs(value: Any) -> bool:
    if not isinstance(value, str | list | tuple | Mapping):
        return False
    value = _rows(value)
    return (
        isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Mapping) and bool(pair_keys(value[0]))
    )


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
