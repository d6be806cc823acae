"""Convert the record formats of other tools to the fields of one of our schemas.

A form is detected from the first records and rewrites each record independently; the schema readers, the
checks for lost images and `--columns` then work on the result. docs/data-forms.md lists where each comes from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ixtune.data.schemas.forms.conversations import MINICPM, PROMPT_COMPLETION, SWIFT_GROUNDING
from ixtune.data.schemas.forms.donut import DONUT, FIELDS, has_only_fields
from ixtune.data.schemas.forms.form import Form
from ixtune.data.schemas.forms.label_studio import LABEL_STUDIO
from ixtune.data.schemas.forms.pairs import PAIRS
from ixtune.data.schemas.forms.prodigy import PRODIGY

__all__ = ["FIELDS_AS_JSON", "FORMS", "form_of", "has_only_fields"]

FIELDS_AS_JSON = "fields-as-json"

FORMS: dict[str, Form] = {
    "label-studio": LABEL_STUDIO,
    "prodigy": PRODIGY,
    "donut": DONUT,
    "prompt-completion": PROMPT_COMPLETION,
    "minicpm": MINICPM,
    "swift-grounding": SWIFT_GROUNDING,
    FIELDS_AS_JSON: FIELDS,
    "pairs": PAIRS,
}


def form_of(records: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the key of the form of some records in `FORMS`, None if they have none.

    One record of the form is enough.
    """
    for key, form in FORMS.items():
        if any(form.is_in(record) for record in records):
            return key
    return None
