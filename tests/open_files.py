"""Return the open files of this process."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def open_files_below(path: Path) -> list[str]:
    """Return the open files at or below a path; what other tests left open does not count."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of listdir itself
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return [name for name in found if Path(name).is_relative_to(path.resolve())]
