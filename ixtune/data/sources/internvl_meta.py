"""Read InternVL's meta JSON: image folder, annotation file and repeats of each dataset in a mixture.

    {"receipts": {"root": "data/", "annotation": "data/receipts.jsonl", "repeat_time": 2, "length": 1200}}

Each data set is a source; `repeat_time` is its weight. Paths are relative to the file, or else to the working
directory, where InternVL is started. Other fields are not used, which is printed.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ixtune.data.schemas.fields import listed, shown
from ixtune.data.sources.listing_file import listing_in
from ixtune.data.sources.source import Source
from ixtune.errors import UsageError

_READ = ("root", "annotation", "repeat_time")


def is_meta(path: Path) -> bool:
    """Return whether a path is that of a meta JSON, by its content: an object of objects that name annotations."""
    listing = listing_in(path)
    return bool(listing) and all(
        isinstance(one, Mapping) and isinstance(one.get("annotation"), str) for one in listing.values()
    )


def sources_of(path: Path, name: str | None, defaults: Source) -> list[Source]:
    """Return the sources that a meta JSON lists.

    Args:
        path: Path of the file.
        name: The only data set to read; None for all.
        defaults: The user's settings for all sources.

    Raises:
        UsageError: There is no such dataset, a file or a folder is not there, or `repeat_time` is no number above 0.
    """
    sets = json.loads(path.read_bytes())
    if name is not None and name not in sets:
        near = difflib.get_close_matches(name, sets, n=1)
        raise UsageError(
            f"there is no dataset {name}" + (f"; did you mean {near[0]}?" if near else ""),
            where=str(path),
            hint=f"choose one with --dataset: {listed(sets)}, or leave it out to read all",
        )
    return [_source(path, one, sets[one], defaults) for one in ([name] if name is not None else sets)]


def _source(path: Path, name: str, described: Mapping[str, Any], defaults: Source) -> Source:
    where = f"{path}, {name}"
    file = _found(path, described["annotation"], where)
    given = described.get("root")
    if given is not None and not isinstance(given, str):
        raise UsageError(f"`root` is {shown(given)}", where=where, hint="write the folder of the images")
    own_root = defaults.image_root is None and defaults.remote_root is None
    root = _found(path, given, where) if given and own_root else defaults.image_root
    repeats = described.get("repeat_time", 1)
    if not isinstance(repeats, int | float) or isinstance(repeats, bool) or not 0 < repeats < math.inf:
        raise UsageError(f"`repeat_time` is {shown(repeats)}", where=where, hint="write a number above 0")
    unused = [key for key in described if key not in _READ]
    return replace(
        defaults,
        path=str(file),
        image_root=root,
        weight=float(repeats) if repeats != 1 else defaults.weight,
        remark=f"{name} of {path.name}" + (f", not used: {listed(unused)}" if unused else ""),
    )


def _found(path: Path, given: str, where: str) -> Path:
    places = [path.parent / given, Path(given)]
    for place in places:
        if place.exists():
            return place
    raise UsageError(
        f"there is no {given}, neither next to the file nor in the working directory",
        where=where,
        hint="correct the path, or run the command in the folder that it is relative to",
    )
