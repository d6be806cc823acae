"""Compile the JSON schemas of requests; the most recent ones are kept."""

from __future__ import annotations

import threading
from collections import OrderedDict

from ixtune.answering.json_schema import ANY_OBJECT, JsonGrammar, checked_schema
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.errors import IxtuneError
from ixtune.serving.errors import bad_request
from ixtune.serving.schema import ResponseFormat

KEPT = 64
_PARAM = "response_format"


class Grammars:
    """Grammars for `response_format`, by schema."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Compile for the vocabulary of this tokenizer."""
        self._tokenizer = tokenizer
        self._kept: OrderedDict[str, JsonGrammar] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, wanted: ResponseFormat | None) -> JsonGrammar | None:
        """Return the grammar that an answer follows; None for a free answer.

        Raises:
            ApiError: The schema is missing, or answers cannot be constrained to it.
        """
        if wanted is None or wanted.type == "text":
            return None
        with self._lock:  # one compilation at a time
            try:
                schema = ANY_OBJECT if wanted.type == "json_object" else _schema(wanted)
                if schema not in self._kept:
                    self._kept[schema] = JsonGrammar(schema, self._tokenizer)
            except IxtuneError as error:
                raise bad_request(f"{error.what}. Hint: {error.hint}", _PARAM, "invalid_json_schema") from error
            self._kept.move_to_end(schema)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return self._kept[schema]


def _schema(wanted: ResponseFormat) -> str:
    if wanted.json_schema is None or wanted.json_schema.schema_ is None:
        raise bad_request(
            "response_format json_schema needs json_schema.schema", f"{_PARAM}.json_schema", "invalid_json_schema"
        )
    return checked_schema(wanted.json_schema.schema_, _PARAM)
