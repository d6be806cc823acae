"""Lock a run folder; the kernel releases the lock when the process ends for any reason."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ixtune.errors import IxtuneError


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Lock a run folder for one process; create it if it is missing, and remove it again if it stays empty.

    The folder itself is locked, so that no lock file is left behind for a later run. If folders cannot be
    locked (some network file systems) a second run is not detected.

    Raises:
        IxtuneError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)  # not inherited by programs that this one starts
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise IxtuneError(
                "another process is training in this folder",
                where=str(folder),
                hint="wait until it has ended, or choose another folder: output=NAME",
            ) from error
        except OSError:  # NFS among others
            pass
        yield
    finally:
        with suppress(OSError):  # not empty, as it should be
            folder.rmdir()
        os.close(descriptor)
