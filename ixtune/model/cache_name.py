"""Name of the cache in calls and outputs of the installed transformers: `past_key_values`, from 5.24 on `cache`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

NAMES = ("past_key_values", "cache")
NAME = next(name for name in reversed(NAMES) if name in {field.name for field in fields(CausalLMOutputWithPast)})
"""The name that the installed transformers uses."""


def named(cache: Cache | None) -> dict[str, Any]:
    """Return a cache as the argument, or the field of an output, that transformers expects."""
    return {NAME: cache}
