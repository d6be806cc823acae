"""Read small JSON files that list data sets by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_LARGEST_BYTES = 16 << 20


def listing_in(path: Path) -> Mapping[str, Any]:
    """Return the object of a small JSON file; an empty one for any other file."""
    if path.suffix.lower() != ".json" or not path.is_file() or path.stat().st_size > _LARGEST_BYTES:
        return {}
    try:
        with open(path, "rb") as file:
            if not file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
                return {}
        listing = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return listing if isinstance(listing, Mapping) else {}
