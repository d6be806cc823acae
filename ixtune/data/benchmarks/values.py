"""Check and convert single values of benchmark files: texts, ids, answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.fields import id_of, is_missing, require_text, shown

NO_ANSWERS = "answers of test sets are mostly kept by the organizers: pass the validation file"


class NoAnswer(RecordError):
    """A question without reference answers, as in test sets."""


def text_in(fields: Mapping[str, Any], name: str) -> str:
    """Return a required text.

    Raises:
        RecordError: It is missing, empty, not text, or contains characters that text cannot hold.
    """
    value = fields.get(name)
    if is_missing(value):
        raise RecordError(Reason.MISSING_FIELD, f"there is no `{name}`", hint=f"write a text into `{name}`")
    if not isinstance(value, str) or not value.strip():
        raise RecordError(Reason.BAD_FIELD, f"`{name}` is {shown(value)}", hint=f"write a text into `{name}`")
    require_text(value, f"`{name}`")
    return value


def question_in(fields: Mapping[str, Any], name: str = "question") -> str:
    """Return the question, stripped of surrounding white space.

    Raises:
        RecordError: There is none.
    """
    return text_in(fields, name).strip()


def id_in(fields: Mapping[str, Any], name: str) -> str:
    """Return a required id as text.

    Raises:
        RecordError: It is absent, or neither text nor a whole number.
    """
    found = id_of(fields.get(name))
    if found is None:
        value = fields.get(name)
        raise RecordError(
            Reason.BAD_ID,
            f"there is no `{name}`" if is_missing(value) else f"`{name}` is {shown(value)}",
            hint="give every question its own id, a text or a whole number",
        )
    require_text(found, f"`{name}`")
    return found


def kind_in(fields: Mapping[str, Any], name: str) -> str:
    """Return the type of a question, a list of types joined by commas; "" if the field is absent.

    Raises:
        RecordError: It is neither.
    """
    value = fields.get(name)
    if is_missing(value):
        return ""
    kinds: list[Any] = value if isinstance(value, list) else [value]
    for kind in kinds:
        if not isinstance(kind, str):
            raise RecordError(Reason.BAD_FIELD, f"`{name}` is {shown(value)}", hint="write a text, or a list of texts")
        require_text(kind, f"`{name}`")
    return ", ".join(kinds)


def references_in(fields: Mapping[str, Any], *names: str) -> tuple[str, ...]:
    """Return the reference answers, one or a list, from the first of some fields that is present.

    Numbers become their text, and a JSON object its JSON. A blank one counts if there are others, as it does for the
    agreement of annotators.

    Raises:
        NoAnswer: None of the fields is present, or the first holds no answer.
        RecordError: The field holds something else.
    """
    name = next((name for name in names if not is_missing(fields.get(name))), names[0])
    value = fields.get(name)
    found = tuple(_answer(one, name) for one in (value if isinstance(value, list) else [value]) if not is_missing(one))
    if not any(answer.strip() for answer in found):
        raise NoAnswer(Reason.MISSING_FIELD, f"there is no answer in `{name}`", hint=NO_ANSWERS)
    return found


def _answer(value: Any, name: str) -> str:
    if isinstance(value, Mapping):
        try:
            value = json.dumps(value, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise RecordError(Reason.BAD_FIELD, f"`{name}` is not JSON", hint="write the answer as a text") from error
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = json.dumps(value)
    if not isinstance(value, str):
        raise RecordError(Reason.BAD_FIELD, f"`{name}` holds {shown(value)}", hint="write answers as texts")
    require_text(value, f"`{name}`")
    return value
