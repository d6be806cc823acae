"""Errors for people: what is wrong and where, how to mend it, and the exit code of the process."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence


class IxtuneError(Exception):
    """Something a person can mend; the command line prints it without a traceback.

    Args:
        what: What is wrong, in one line, without a full stop.
        where: The file, line, tensor or option it was found in, if there is one.
        mend: What to do about it, in one line.
        notes: Further lines, one finding each, when there are several.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, hint: str, notes: Sequence[str] = ()) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint
        self.notes = tuple(notes)
        # from Python there is a traceback in place of our lines: it ends with the same ones
        for note in (*self.notes, f"hint:  {hint}"):
            self.add_note(note)

    def __str__(self) -> str:
        """One line: what, and where in parentheses."""
        return f"{self.what} ({self.where})" if self.where else self.what


class UsageError(IxtuneError):
    """The command or the recipe is wrong; nothing was started."""

    exit_code = 2


class DataError(IxtuneError):
    """More of the data is bad than the threshold allows."""

    exit_code = 3


def choice(given: str, names: Iterable[str]) -> str:
    """How to mend a name that there is not: the one that is spelt most alike, or else all there are."""
    import difflib  # only where something is wrong

    known = {name.lower(): name for name in names}
    near = difflib.get_close_matches(given.lower(), known, n=1)
    return f"did you mean {known[near[0]]}?" if near else f"choose one of {', '.join(known.values())}"


def describe(error: Exception) -> IxtuneError:
    """Return an exception as one with a message for people; an `IxtuneError` is returned as it is."""
    if isinstance(error, IxtuneError):
        return error
    number = error.errno if isinstance(error, OSError) else None
    where = str(error.filename) if isinstance(error, OSError) and error.filename else None
    # safetensors and torch raise types of their own, with the system's words
    if number in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error):
        return IxtuneError(
            "no space left on the disk",
            where=where,
            hint="free some or give another folder; nothing half-written is left",
        )
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return IxtuneError(
            os.strerror(number).lower(),
            where=where,
            hint="change the permissions, or give another file or folder",
        )
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which must not be imported here
        return IxtuneError(
            "the GPU's memory does not suffice",
            hint="ask `ixtune plan`, which computes what would fit: checkpointed layers, smaller packs, smaller hd_num",
        )
    first_line = next(iter(str(error).splitlines()), "")
    return IxtuneError(
        f"internal error: {type(error).__name__}: {first_line}",
        hint="run it again as `ixtune --debug …` for the traceback, and report it",
    )
