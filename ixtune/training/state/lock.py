"""Lock a run folder; the kernel releases the lock when the process ends for any reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ixtune import platforms
from ixtune.errors import IxtuneError


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Lock a run folder for one process; create it if it is missing, and remove it again if it stays empty.

    The folder itself is locked, so that no lock file is left behind for a later run. If folders cannot be
    locked (some network file systems, Windows) a second run is not detected.

    Raises:
        IxtuneError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = platforms.open_for_lock(folder, follow=True)  # not inherited by programs that this one starts
    try:
        if descriptor is not None and platforms.lock(descriptor) is False:
            raise IxtuneError(
                "another process is training in this folder",
                where=str(folder),
                hint="wait until it has ended, or choose another folder: output=NAME",
            )
        yield
    finally:
        with suppress(OSError):  # not empty, as it should be
            folder.rmdir()
        platforms.close(descriptor)
