"""Atomic writes: a temporary sibling, fsync, rename.

A process killed at any moment leaves the old state or the new one under the final name. It may also leave
a hidden sibling, `.NAME.partial-` and two hexadecimal numbers, which is never read. The next write of
the same NAME removes it, if its owner is certainly dead.

A living owner, or a process it has forked, holds a lock on its sibling (flock), which the kernel releases at
death, in any container. Another kernel may not see that lock, over a network or from another virtual
machine; therefore the first of the two numbers identifies the kernel, and siblings left by another kernel, or by this
machine before a reboot, are not touched. Such a sibling can be deleted by hand when nothing writes there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ixtune import platforms
from ixtune.errors import IxtuneError

# 2,000 files of 3 kB on ext4 took 0.42 to 0.56 s one by one, 0.03 to 0.04 s at once, 500 of them 0.13 s. Fewer are
# not worth it: a sync of everything also waits for other writes to the same disk.
_SYNCED_ONE_BY_ONE = 500


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` as a whole or not at all, replacing a file of that name.

    Missing parent folders are created.

    Raises:
        OSError: The disk is full or refuses the write; `path` is as it was before.
    """
    with _sibling(path, Path.touch) as (partial, _):
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    platforms.sync(path.parent)


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
    refuse_existing(path)
    with _sibling(path, Path.mkdir) as (partial, descriptor):
        with _named_if_interrupted(path):
            yield partial
        _sync_all(partial, descriptor)
        refuse_existing(path)  # rename(2) would silently replace an empty folder
        try:
            os.rename(partial, path)
        except OSError:  # it has just been created, and is not empty
            refuse_existing(path)
            raise
    platforms.sync(path.parent)


@contextmanager
def _named_if_interrupted(path: Path) -> Iterator[None]:
    """Let a Ctrl-C in the block say that `path` does not exist."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(f"{path} was not written") from interrupt


@contextmanager
def resumable_folder(path: Path) -> Iterator[Path]:
    """Yield a folder like `atomic_folder`, but keep what a killed process wrote for the next call.

    The sibling has one name, `.NAME.unfinished`. Only a kill or a power failure leaves it: on an exception it is
    removed as well. The caller has to check whether its content can be used, and to sync what it relies on.

    Raises:
        IxtuneError: `path` exists, or a living process is writing it.
        OSError: The disk is full or refuses a write.
    """
    refuse_existing(path)
    partial = path.parent / f".{path.name}.unfinished"
    partial.mkdir(parents=True, exist_ok=True)
    descriptor = platforms.open_for_lock(partial)
    try:
        if descriptor is not None and platforms.lock(descriptor) is False:
            raise IxtuneError(
                "another process is writing this output", where=str(path), hint="wait for it, or choose another name"
            )
        try:
            with _named_if_interrupted(path):
                yield partial
            _sync_all(partial, descriptor)
            refuse_existing(path)
            os.rename(partial, path)
        except BaseException:
            _remove(partial)
            raise
    finally:
        platforms.close(descriptor)
    platforms.sync(path.parent)


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content, read block by block."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def without_detours(path: Path) -> Path:
    """Return a path without `..` after a folder, such as `photos` for `mine/../photos`.

    The path is unchanged where that would be another place: after a link to a folder, `..` is the parent of its target.
    """
    short = Path(os.path.normpath(path))
    try:
        return short if short.samefile(path) else path
    except OSError:  # one of them may not exist
        return path


def readable_size(nbytes: int) -> str:
    """Return a size in GiB, or in MiB below a quarter of a GiB."""
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**28 else f"{nbytes / 2**20:.1f} MiB"


def refuse_existing(path: Path) -> None:
    """Refuse an output path that already exists.

    Raises:
        IxtuneError: It exists.
    """
    if os.path.lexists(path):
        raise IxtuneError(
            "the output exists already",
            where=str(path),
            hint="choose another name, or remove it if it is not needed",
        )


@contextmanager
def _sibling(path: Path, make: Callable[[Path], None]) -> Iterator[tuple[Path, int | None]]:
    """Yield a new hidden sibling of `path`, made by `make`, and the descriptor that holds its lock, if there are locks.

    It is created next to `path` because rename is atomic only within one file system. On an exception it is removed.
    """
    kernel = platforms.kernel()
    stem = f".{path.name}.partial-{kernel or '0' * 8}-"
    if kernel:
        _remove_dead(path.parent, stem)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, descriptor = _make_locked(path.parent, stem, make)
    try:
        yield partial, descriptor
    except BaseException:
        _remove(partial)  # the first error is the one to report
        raise
    finally:
        platforms.close(descriptor)


def _make_locked(parent: Path, stem: str, make: Callable[[Path], None]) -> tuple[Path, int | None]:
    """Make a file or folder of an unused name and lock it: its name and its open descriptor, if there are locks."""
    while True:
        partial = parent / (stem + secrets.token_hex(4))
        make(partial)
        # before it is locked, another process may remove it as dead; it is empty, so use the next name
        try:
            descriptor = platforms.open_for_lock(partial)
        except FileNotFoundError:
            if not parent.is_dir():
                raise
            continue
        if descriptor is None or (platforms.lock(descriptor) is not False and os.path.lexists(partial)):
            return partial, descriptor
        os.close(descriptor)


def _remove_dead(parent: Path, stem: str) -> None:
    """Remove the siblings whose lock is free. Names are never used twice, so what is removed is what was locked."""
    pattern = re.compile(re.escape(stem) + "[0-9a-f]{8}")
    names: list[str] = []
    with suppress(OSError):  # the folder does not exist yet, or is writable but not readable
        names = os.listdir(parent)
    for name in filter(pattern.fullmatch, names):
        with suppress(OSError):  # another process removes it, or we have no permission to
            descriptor = platforms.open_for_lock(parent / name)
            try:
                if descriptor is not None and platforms.lock(descriptor):
                    _remove(parent / name)
            finally:
                platforms.close(descriptor)


def _remove(partial: Path) -> None:
    """Remove a file or a folder; ignore errors."""
    if partial.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
    else:
        with suppress(OSError):
            partial.unlink()


def _sync_all(folder: Path, descriptor: int | None) -> None:
    """Sync the content of `folder` to the disk; `descriptor` was opened on the folder before anything was written."""
    everything = [Path(parent, name) for parent, _, names in os.walk(folder) for name in (*names, "")]
    if len(everything) > _SYNCED_ONE_BY_ONE and platforms.sync_file_system(descriptor):
        return
    for path in everything:
        platforms.sync(path)
