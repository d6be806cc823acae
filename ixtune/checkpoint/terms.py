"""Find the license terms of a base, which everything derived from it inherits."""

from __future__ import annotations

import re
from pathlib import Path

from ixtune.checkpoint.sizes import Sizes

_LICENSE = re.compile(r"^license:\s*(\S+)", re.MULTILINE)


def terms_of(folder: Path, sizes: Sizes) -> str:
    """Return the terms in one line: those of the released model, else those the folder states."""
    if sizes.is_released:
        return sizes.member.terms
    card = folder / "README.md"
    if card.is_file() and (stated := _LICENSE.search(card.read_text(encoding="utf-8", errors="replace"))):
        return f"{stated[1]}, says its README.md"
    files = sorted(file.name for file in folder.iterdir() if file.name.upper().startswith(("LICENSE", "LICENCE")))
    return f"see its {files[0]}" if files else "not stated in its folder: ask whoever made it"
