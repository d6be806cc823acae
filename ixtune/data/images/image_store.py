"""Store the images that a prepared set contains itself, each once, under the hash of its content."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from ixtune.data.images.file_kinds import is_avif, is_heic

# first bytes of an image file -> suffix of its copy; the content decides, not the original name
_ENDINGS = (
    (b"\x89PNG", ".png"),
    (b"\xff\xd8", ".jpg"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
    (b"RIFF", ".webp"),
    (b"\0\0\0\x0cjP", ".jp2"),
)


def keep(folder: Path, content: bytes) -> str:
    """Write an image under the SHA-256 of its content unless it is there, and return its path relative to `folder`."""
    name = hashlib.sha256(content).hexdigest()
    ending = next((ending for start, ending in _ENDINGS if content.startswith(start)), "")
    ending = ".heic" if is_heic(content) else ".avif" if is_avif(content) else ending
    target = folder / name[:2] / f"{name}{ending}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{os.getpid()}-{secrets.token_hex(4)}")
        partial.write_bytes(content)
        os.replace(partial, target)  # two processes may have written the same image
    return f"{target.parent.name}/{target.name}"
