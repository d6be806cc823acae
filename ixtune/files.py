"""Writes that either happen or do not: a temporary sibling, fsync, rename.

A process killed at any moment leaves the old state or the new one under the final name. What it can leave
besides is a hidden sibling called `.NAME.partial-XXXXXXXX`, which is never read and can be deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ixtune.errors import IxtuneError


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` as a whole or not at all, replacing a file of that name.

    Missing parent folders are created.

    Raises:
        OSError: The disk is full or refuses the write; `path` is as it was before.
    """
    partial = _partial_sibling(path)
    try:
        with open(partial, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):  # the first error is the one to report
            partial.unlink(missing_ok=True)
        raise
    _fsync(path.parent)


def atomic_write_text(path: Path, content: str) -> None:
    """Write `content` to `path` in UTF-8 as a whole or not at all, see `atomic_write_bytes`."""
    atomic_write_bytes(path, content.encode("utf-8"))


def atomic_write_json(path: Path, content: Any) -> None:
    """Write `content` to `path` as indented JSON as a whole or not at all, see `atomic_write_bytes`.

    Raises:
        TypeError: `content` holds something JSON cannot express.
        ValueError: `content` holds NaN or infinity, which other JSON readers refuse.
    """
    atomic_write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling folder that becomes `path` when the block ends without an exception.

    All its files are synced to the disk before the rename. On an exception, Ctrl-C included, the temporary
    folder is removed and `path` does not exist.

    Raises:
        IxtuneError: `path` exists, at the start or at the end of the block. Nothing is ever replaced.
        OSError: The disk is full or refuses a write.
    """
    _refuse_existing(path)
    partial = _partial_sibling(path)
    partial.mkdir()
    try:
        yield partial
        for folder, _, names in os.walk(partial):
            for name in names:
                _fsync(Path(folder, name))
            _fsync(Path(folder))
        _refuse_existing(path)  # rename(2) would silently replace an empty folder
        os.rename(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _fsync(path.parent)


def sha256_file(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's content, read block by block."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _partial_sibling(path: Path) -> Path:
    """An unused hidden name beside `path`: rename is atomic only within one file system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise IxtuneError(
            "the output exists already",
            where=str(path),
            mend="give another name, or remove it if it is not needed",
        )


def _fsync(path: Path) -> None:
    """Flush one file or folder to the disk; a rename is durable only when its folder is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
