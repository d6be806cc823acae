"""Write model cards of adapters and exports: content, base, license terms, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ixtune.adapter.folder import RECORD_FILE
from ixtune.adapter.profiles import Profile
from ixtune.family import member_of_hub_id

FILE = "README.md"


@dataclass(frozen=True, slots=True)
class Facts:
    """Content of a card.

    Attributes:
        profile: Export profile.
        base: Name of the base in the adapter.
        terms: License terms of the base, in one line.
        record: The adapter's ixtune.json.
        hd_num: Maximum number of crops per image.
        warnings: Warnings of the export.
    """

    profile: Profile
    base: str
    terms: str
    record: Mapping[str, Any]
    hd_num: int
    warnings: tuple[str, ...]


def of_adapter(record: Mapping[str, Any]) -> str:
    """Return the model card of a trained adapter, from its ixtune.json."""
    base = str(record.get("base", ""))
    hd_num = record.get("hd_num")
    terms = record.get("terms") or "see its own card"
    return "\n".join(
        [
            *_head("peft", base),
            f"# Adapter for {_shown_base(base)}",
            "",
            f"Made by ixtune {record.get('ixtune_version', '')}".rstrip() + ".",
            "",
            "## Terms",
            "",
            f"A derivative of its base, whose terms it inherits: {terms}.",
            "",
            "## Loading",
            "",
            *([f"Trained with `hd_num` {hd_num}; use the same value.", ""] if hd_num else []),
            "```",
            'ixtune predict "What is the total?" --image receipt.png --adapter THIS_FOLDER',
            "ixtune merge THIS_FOLDER --out merged",
            "```",
            "",
            "In Python, `peft.PeftModel.from_pretrained` puts it on an `IXC2ForCausalLM` of the same base;",
            f"the base's identity is in `{RECORD_FILE}`, with the data's hashes and the whole recipe.",
            "",
            "## Data and training",
            "",
            *(f"- {name}: {value}" for name, value in _training(record)),
            "",
            *_recipe(record),
        ]
    )


def text(facts: Facts) -> str:
    """Return the card in Markdown, with the front matter that the hub reads."""
    library = "peft" if facts.profile.name == "peft-original" else "transformers"
    limits = [f"- {limit}" for limit in (*facts.profile.limits, *facts.warnings)]
    return "\n".join(
        [
            *_head(library, facts.base),
            f"# {_shown_base(facts.base)}, adapted to a domain",
            "",
            f"Made by ixtune {facts.record.get('ixtune_version', '')}".rstrip() + f": {facts.profile.makes}.",
            "",
            "## Terms",
            "",
            f"A derivative of its base, whose terms it inherits: {facts.terms}.",
            "",
            "## Loading",
            "",
            f"For {facts.profile.consumer}. Trained with `hd_num` {facts.hd_num}; use the same value.",
            "",
            "```",
            facts.profile.command,
            "```",
            "",
            "Known not to work:",
            "",
            *limits,
            "",
            "## Data and training",
            "",
            *(f"- {name}: {value}" for name, value in _training(facts.record)),
            "",
            *_recipe(facts.record),
        ]
    )


def _head(library: str, base: str) -> list[str]:
    """Return the front matter; the hub refuses a base_model that is not a hub id, such as a local folder."""
    base_model = [f"base_model: {base}"] if member_of_hub_id(base) else []
    head = ["---", f"library_name: {library}", *base_model, "license: other", "license_name: that-of-its-base"]
    return [*head, "tags: [ixtune, internlm-xcomposer2, image-text-to-text]", "---"]


def _shown_base(base: str) -> str:
    """Return a name without the path on the machine."""
    return base.rstrip("/").rpartition("/")[2] or base


def _training(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the counts and metrics of the adapter's record."""
    steps = {name: record.get(name) for name in ("steps", "step", "adapter_step", "tokens", "loss", "validation_loss")}
    scores = _numbers(record.get("validation_scores"))
    found = {
        **_numbers(record.get("data")),
        **_numbers(steps),
        **{f"validation {name}": value for name, value in scores.items()},
        **_numbers(record.get("metrics")),
    }
    if chain := record.get("ancestors"):
        starts = [f"{_shown_base(str(one.get('adapter')))} ({one.get('steps')} steps)" for one in chain]
        found["started from"] = ", then ".join(starts)
    return list(found.items()) or [("data and metrics", "not recorded in the adapter")]


def _numbers(given: Any) -> dict[str, str]:
    """Return the numbers of a mapping as text, without other values."""
    pairs = given.items() if isinstance(given, Mapping) else ()
    return {
        str(name).replace("_", " "): f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
        for name, value in pairs
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _recipe(record: Mapping[str, Any]) -> list[str]:
    """Return the recipe without paths of the machine it was trained on."""
    recipe = record.get("recipe")
    if not isinstance(recipe, Mapping):
        return []
    kept = {name: recipe[name] for name in ("adapter", "quantize", "training") if name in recipe}
    return ["## Recipe", "", "```json", json.dumps(kept, indent=2, default=str), "```", ""]
