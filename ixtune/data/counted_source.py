"""Count the records of one source while they are read, and describe the source in the manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ixtune.data.sources.source_loader import Opened
from ixtune.files import sha256_file


@dataclass(slots=True)
class CountedSource:
    """Counts of one source during reading.

    Attributes:
        opened: The source with its detected format.
        read: Number of entries read so far.
        accepted: Number of entries that became samples.
        with_images: Number of accepted entries with at least one image.
        rows: Number of their rows in the sets; known at the end.
        numbers_by_id: Id -> number of each record so far.
        position: Read position, in the unit of the source's total.
    """

    opened: Opened
    read: int = 0
    accepted: int = 0
    with_images: int = 0
    rows: int = 0
    numbers_by_id: dict[str, int] = field(default_factory=dict)
    position: int = 0

    def described(self, hd_num: int | None) -> dict[str, Any]:
        """Return its entry in a manifest; `hd_num` is that of sources without their own."""
        opened, source = self.opened, self.opened.source
        return {
            "path": source.origin or (str(Path(source.path).resolve()) if opened.files else source.path),
            "format": [opened.container.value, opened.schema.value],
            "files": len(opened.files),
            "sha256": _hash(opened.files) if opened.files else opened.fingerprint,
            "image_root": source.remote_root
            or (str(opened.image_root) if opened.image_root and not source.origin else None),
            "hd_num": source.hd_num or hd_num,
            "system": source.system,
            "question": source.question,
            "columns": dict(opened.columns),
            "form": opened.reading.form,
            "image_pattern": opened.reading.image_pattern,
            "missing_placeholder": source.missing_placeholder,
            "allow_image_text": bool(source.allow_image_text),
            "weight": source.weight,
            "count": source.count,
            "read": self.read,
            "accepted": self.accepted,
            "rejected": self.read - self.accepted,
            "rows": self.rows,
        }


def _hash(files: Sequence[Path]) -> str:
    """Return the SHA-256 of a file; for several files, that of the lines `HASH  NAME` printed by sha256sum."""
    if len(files) == 1:
        return sha256_file(files[0])
    lines = "".join(f"{sha256_file(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()
