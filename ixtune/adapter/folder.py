"""Find the files of an adapter folder and read its record, without any tensor library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ixtune.errors import IxtuneError

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
RECORD_FILE = "ixtune.json"


def find_adapter(path: Path) -> Path:
    """Return the adapter folder at `path`: the folder itself, or the `adapter` folder of a run.

    Raises:
        IxtuneError: Neither is an adapter; the message says what is missing.
    """
    for folder in (path, path / "adapter"):
        missing = [name for name in (WEIGHTS_FILE, CONFIG_FILE) if not (folder / name).is_file()]
        if not missing:
            return folder
        if len(missing) == 1:
            raise IxtuneError(
                f"the adapter lacks {missing[0]}", where=str(folder), hint="copy the whole adapter folder"
            )
    if (path / "config.json").is_file():
        raise IxtuneError(
            "this is a whole model, not an adapter",
            where=str(path),
            hint="pass the adapter that it was made of; transformers loads the model itself after `import ixtune`",
        )
    raise IxtuneError(
        "there is no adapter",
        where=str(path),
        hint=f"pass the folder with {WEIGHTS_FILE} and {CONFIG_FILE}, or the run folder around it",
    )


def read_info(folder: Path) -> dict[str, Any]:
    """Return `ixtune.json` of an adapter folder.

    Raises:
        IxtuneError: this is not an adapter folder.
    """
    missing = [name for name in (WEIGHTS_FILE, CONFIG_FILE, RECORD_FILE) if not (folder / name).is_file()]
    if missing:
        raise IxtuneError(
            f"this is not an adapter folder: {', '.join(missing)} missing",
            where=str(folder),
            hint="pass the `adapter` folder of a finished `ixtune train` run",
        )
    try:
        info = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise IxtuneError(
            f"{RECORD_FILE} is not valid JSON: {error}", where=str(folder / RECORD_FILE), hint="copy the adapter again"
        ) from error
    if not isinstance(info, dict):
        raise IxtuneError(
            f"{RECORD_FILE} is not a JSON object", where=str(folder / RECORD_FILE), hint="copy the adapter again"
        )
    return info
