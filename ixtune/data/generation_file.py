"""Write generation_config.json, from which transformers' `generate` knows where an answer ends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ixtune.data.text.tokenizer import Tokenizer
from ixtune.errors import IxtuneError
from ixtune.files import atomic_write_json

GENERATION_FILE = "generation_config.json"


def stops_of(folder: Path) -> list[int] | None:
    """Return the tokens that end an answer: EOS, and the end of a turn. None without a tokenizer that can be read."""
    try:
        tokenizer = Tokenizer.from_base(folder)
    except IxtuneError:
        return None
    return [tokenizer.eos_id, tokenizer.end_of_turn_id]


def with_stops(settings: Mapping[str, Any], stops: list[int]) -> dict[str, Any]:
    """Return generation settings that also stop at these tokens; those that do already, as they are.

    In training every answer ends with the end of a turn, and only the last one with EOS too. The released file names
    EOS alone, so `generate` would continue after an answer.
    """
    given = settings.get("eos_token_id")
    named = given if isinstance(given, list) else [] if given is None else [given]
    if set(stops) <= set(named):
        return dict(settings)
    kept = {key: value for key, value in settings.items() if key != "_from_model_config"}  # no longer true
    return {**kept, "eos_token_id": [*named, *(stop for stop in stops if stop not in named)]}


def write_generation_file(base: Path, folder: Path) -> None:
    """Write the base's generation settings into a folder, with the tokens that end an answer.

    The base's file is copied if it names them already or is not a JSON object, or if the tokenizer cannot be read. The
    tokens that begin and pad a text are added where the base names none.
    """
    source, stops = base / GENERATION_FILE, stops_of(base)
    given = _object(source)
    if stops is not None and given is not None and with_stops(given, stops) != given:
        tokenizer = Tokenizer.from_base(base)
        usual = {"bos_token_id": tokenizer.bos_id, "pad_token_id": tokenizer.eos_id}
        atomic_write_json(folder / GENERATION_FILE, {**usual, **with_stops(given, stops)})
    elif source.is_file():
        shutil.copyfile(source, folder / GENERATION_FILE)


def _object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file: empty if there is no file, None if it holds something else."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
