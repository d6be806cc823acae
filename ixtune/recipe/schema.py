"""JSON schema of the recipe, for editors that complete and check YAML."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ixtune.recipe.recipe import Recipe

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """Return the schema; every key has its help text as `description`.

    It knows keys, types and ranges. Contradictions between keys are found by `ixtune recipes check`.
    """
    made = Recipe.model_json_schema()
    made["title"] = "ixtune recipe"
    # one folder need not be a list, which only the reader's validator knows
    train = made["$defs"]["DataSection"]["properties"]["train"]
    listed = {key: train.pop(key) for key in [*train] if key not in ("title", "description")}
    train["anyOf"] = [{"type": "string"}, listed]
    for part in _parts(made):
        # the names of keys once more, with capitals
        part.pop("title", None)
    return {"$schema": _DIALECT, "title": "ixtune recipe", **made}


def _parts(made: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for section in [made, *made["$defs"].values()]:
        yield section
        yield from section["properties"].values()
