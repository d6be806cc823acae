"""Test that the JSON schema and the recipe reader agree, by a validator for the part of JSON schema used here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ixtune.recipe import recipe as recipes
from ixtune.recipe.schema import schema

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))
SCHEMA = schema()
TYPES = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}
CHECKED = set(
    """type enum const anyOf properties additionalProperties items required minimum maximum exclusiveMinimum
exclusiveMaximum minLength pattern""".split()
)
TOLD = set("default description format title propertyNames $schema $defs".split())
SMALLEST = {"base": "nano", "data": {"train": "set"}, "output": "run"}


def faults(value: Any, part: dict[str, Any], where: str = "") -> Iterator[str]:
    """Return the errors of a value under a part of the schema."""
    if "$ref" in part:
        part = SCHEMA["$defs"][part["$ref"].rpartition("/")[2]] | {k: v for k, v in part.items() if k != "$ref"}
    assert part.keys() <= CHECKED | TOLD, part.keys() - CHECKED - TOLD
    if "anyOf" in part and all([*faults(value, one, where)] for one in part["anyOf"]):
        yield f"{where}: none of the forms"
    kind = part.get("type")
    if kind == "null":
        if value is not None:
            yield f"{where}: not null"
        return
    if kind and (not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        yield f"{where}: no {kind}"
        return
    if "enum" in part and value not in part["enum"]:
        yield f"{where}: none of {part['enum']}"
    if "const" in part and value != part["const"]:
        yield f"{where}: not {part['const']}"
    for name, wrong in (
        ("minimum", lambda bound: value < bound),
        ("maximum", lambda bound: value > bound),
        ("exclusiveMinimum", lambda bound: value <= bound),
        ("exclusiveMaximum", lambda bound: value >= bound),
        ("minLength", lambda bound: len(value) < bound),
        ("pattern", lambda bound: not re.search(bound, value)),
    ):
        if name in part and wrong(part[name]):
            yield f"{where}: {name} {part[name]}"
    if isinstance(value, dict):
        yield from (f"{where}: lacks {name}" for name in part.get("required", ()) if name not in value)
        for key, one in value.items():
            below = part.get("properties", {}).get(key, part.get("additionalProperties"))
            if below is False:
                yield f"{where}: unknown {key}"
            elif isinstance(below, dict):
                yield from faults(one, below, f"{where}.{key}")
    if isinstance(value, list) and "items" in part:
        for one in value:
            yield from faults(one, part["items"], where)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_and_resolved_recipe_satisfies_the_schema(path: Path):
    resolved = yaml.safe_load(recipes.dump(recipes.load(path)))
    assert list(faults(yaml.safe_load(path.read_text(encoding="utf-8")), SCHEMA)) == []
    assert list(faults(resolved, SCHEMA)) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"adapter": {"rnak": 8}}, ".adapter: unknown rnak"),
        ({"adapter": {"rank": "8"}}, ".adapter.rank: no integer"),
        ({"adapter": {"projector": "half"}}, ".adapter.projector: none of ['full', 'lora', 'frozen']"),
        ({"adapter": {"targets": ["wq"]}}, ".adapter.targets: none of ['wqkv', 'wo', 'w1', 'w2', 'w3']"),
        ({"training": {"learning_rate": 0}}, ".training.learning_rate: exclusiveMinimum 0"),
        ({"training": {"gradient_checkpointing": "yes"}}, ".training.gradient_checkpointing: none of the forms"),
        ({"training": {"push_to_hub": "mine"}}, ".training.push_to_hub: none of the forms"),
        ({"data": {}}, ".data: lacks train"),
        ({"data": {"train": 3}}, ".data.train: none of the forms"),
        ({"xyzzy": 1}, ": unknown xyzzy"),
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(change: dict[str, Any], told: str):
    assert list(faults(SMALLEST, SCHEMA)) == []
    assert list(faults({**SMALLEST, **change}, SCHEMA)) == [told]


def test_a_folder_or_a_list_of_folders_is_a_training_set():
    for train in ("set", ["set", "other"]):
        assert list(faults({**SMALLEST, "data": {"train": train}}, SCHEMA)) == []


def test_every_key_has_its_help_text_as_description():
    for name, section in SCHEMA["$defs"].items():
        for key, part in section["properties"].items():
            assert part["description"], f"{name}.{key}"
    for key, part in SCHEMA["properties"].items():
        assert part.get("description") or "$ref" in part, key
