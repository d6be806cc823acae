"""Read LLaMA-Factory's dataset_info.json: file, columns and tags of each of its datasets.

    {"mine": {"file_name": "d.jsonl", "formatting": "sharegpt",
              "columns": {"messages": "chat", "images": "pics"},
              "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "me", "assistant_tag": "it"}}}

`formatting` is alpaca by default. Paths are relative to the file. Preference data (`ranking`) are not supported.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ixtune.data.schemas.fields import listed, shown
from ixtune.data.sources.listing_file import listing_in
from ixtune.data.sources.source import Container, Schema, Source
from ixtune.errors import UsageError

NAME = "dataset_info.json"
_PLACES = ("file_name", "hf_hub_url", "ms_hub_url", "script_url", "cloud_file_name")
# their names -> ours; default columns may be missing in the data
_ALPACA = {"prompt": "question", "query": "input", "response": "answer", "history": "history", "system": "system"}
_ALPACA_DEFAULTS = {"prompt": "instruction", "response": "output"}
_SHAREGPT = {"messages": "messages", "system": "system"}
_TAGS = ("role_tag", "content_tag", "user_tag", "assistant_tag", "system_tag")
_SHAREGPT_TAGS = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"}
_OPENAI_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}


def is_dataset_info(path: Path) -> bool:
    """Return whether a path is that of a dataset_info.json, by its content: an object of objects that name files."""
    listing = listing_in(path)
    return bool(_sets_in(listing)) and len(_sets_in(listing)) == len(listing)


def source_of(path: Path, name: str | None, defaults: Source) -> Source:
    """Return the source that a dataset_info.json describes under a name.

    Args:
        path: Path of the file.
        name: Name of the dataset; None if there is only one.
        defaults: The user's settings for all sources.

    Raises:
        UsageError: There is no such dataset, or it cannot be trained here.
    """
    sets = _sets_in(json.loads(path.read_bytes()))
    if name is None and len(sets) == 1:
        name = next(iter(sets))
    if name is None or name not in sets:
        near = difflib.get_close_matches(name, sets, n=1) if name else []
        raise UsageError(
            f"there is no dataset {name}" + (f"; did you mean {near[0]}?" if near else "")
            if name
            else f"it lists {len(sets)} datasets",
            where=str(path),
            hint=f"choose one with --dataset: {listed(sets)}",
        )
    described = sets[name]
    where = f"{path}, {name}"
    _refuse_other_kinds(described, where)
    columns, tags = _columns_and_tags(described, where)
    file = described.get("file_name")
    if file:
        found = replace(
            defaults,
            path=str(path.parent / file),
            image_root=defaults.image_root or (path.parent if defaults.remote_root is None else None),
        )
    elif described.get("hf_hub_url"):
        found = replace(
            defaults,
            path=described["hf_hub_url"],
            container=Container.HUB,
            split=defaults.split or described.get("split"),
            config=defaults.config or described.get("subset"),
        )
    else:
        raise UsageError(
            f"`file_name` is {shown(file)}", where=where, hint="download the data, and write the file into file_name"
        )
    conversation = described.get("formatting", "alpaca") != "alpaca"
    return replace(
        found,
        columns=defaults.columns or columns,
        tags=tags,
        schema=Schema.SHAREGPT if conversation else Schema.COLUMNS,
        count=defaults.count or described.get("num_samples"),
    )


def _sets_in(listing: Any) -> dict[str, Mapping[str, Any]]:
    if not isinstance(listing, Mapping):
        return {}
    return {
        str(name): one
        for name, one in listing.items()
        if isinstance(one, Mapping) and any(isinstance(one.get(place), str) for place in _PLACES)
    }


def _refuse_other_kinds(described: Mapping[str, Any], where: str) -> None:
    if described.get("ranking"):
        raise UsageError(
            "these are preference data (`ranking`)", where=where, hint="pass supervised data: one answer per question"
        )
    known = ("alpaca", "sharegpt", "openai")
    if described.get("formatting", "alpaca") not in known:
        raise UsageError(
            f"`formatting` is {shown(described['formatting'])}", where=where, hint=f"write one of {', '.join(known)}"
        )


def _columns_and_tags(
    described: Mapping[str, Any], where: str
) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
    """Return (columns, tags) in the form of a source."""
    theirs, tags = described.get("columns") or {}, described.get("tags") or {}
    if not isinstance(theirs, Mapping) or not isinstance(tags, Mapping):
        raise UsageError("`columns` or `tags` is not an object", where=where, hint="write objects, {...}")
    formatting = described.get("formatting", "alpaca")
    names = {**_ALPACA_DEFAULTS, **theirs} if formatting == "alpaca" else {"messages": "conversations", **theirs}
    ours = _ALPACA if formatting == "alpaca" else _SHAREGPT
    columns = [(ours[name], column) for name, column in names.items() if name in ours and column]
    if formatting == "alpaca" and "query" not in theirs:
        columns.append(("input", "input"))
    if names.get("images"):
        columns.append(("image", names["images"]))
    if formatting == "alpaca":
        return tuple(columns), ()
    default = _OPENAI_TAGS if formatting == "openai" else _SHAREGPT_TAGS
    return tuple(columns), tuple((name, value) for name, value in {**default, **tags}.items() if name in _TAGS)
