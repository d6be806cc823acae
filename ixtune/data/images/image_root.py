"""Image roots: the folder that paths of images never lead out of, and one that keeps images given as bytes."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from ixtune.data.rejects import Reason, RecordError

# the first bytes of an image's file -> the ending of its copy; content decides, not the name it had
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


def inside(root: Path, given: str) -> tuple[str, Path]:
    """A path as given -> relative to the image root, and the file, which need not be there.

    Args:
        root: The image root, resolved.
        given: Relative to it, or absolute below it.

    Raises:
        RecordError: The path leads out of the root, perhaps through a link, or nowhere.
    """
    try:
        path = (root / given).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a null character
        raise RecordError(
            Reason.PICTURE_UNREADABLE, "the path leads nowhere", where=given, hint="correct the path"
        ) from error
    if not path.is_relative_to(root):
        raise RecordError(
            Reason.PATH_OUTSIDE_ROOT,
            f"the path leads out of the image root {root}",
            where=given,
            hint="move the image below the image root, or give a higher folder as --image-root",
        )
    return path.relative_to(root).as_posix(), path


def keep(folder: Path, content: bytes) -> str:
    """Write an image under the hash of its content, once; its path relative to the folder."""
    name = hashlib.sha256(content).hexdigest()
    ending = next((ending for start, ending in _ENDINGS if content.startswith(start)), "")
    target = folder / name[:2] / f"{name}{ending}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{os.getpid()}-{secrets.token_hex(4)}")
        partial.write_bytes(content)
        os.replace(partial, target)  # two processes may have written the same image
    return f"{target.parent.name}/{target.name}"
