"""Errors for users: what is wrong and where, a hint, and the exit code of the process."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence


class IxtuneError(Exception):
    """Error that the user can fix; the command line prints it without a traceback.

    Args:
        what: What is wrong with which value, in one line, without a full stop.
        where: The file, line, tensor or option concerned, if there is one.
        hint: One command or edit that fixes it, in one line.
        notes: Further findings, one line each.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, hint: str, notes: Sequence[str] = ()) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint
        self.notes = tuple(notes)
        # from Python, the traceback ends with the lines that the command line prints
        for note in (*self.notes, f"hint:  {hint}"):
            self.add_note(note)

    def __str__(self) -> str:
        """Return `what`, with `where` in parentheses."""
        return f"{self.what} ({self.where})" if self.where else self.what


class UsageError(IxtuneError):
    """Wrong command or recipe; nothing was started."""

    exit_code = 2


class DataError(IxtuneError):
    """More bad data than the threshold allows."""

    exit_code = 3


def choice(given: str, names: Iterable[str]) -> str:
    """Return a hint for an unknown name: the most similar valid one, or all of them if none is similar."""
    import difflib  # only needed for an error

    known = {name.lower(): name for name in names}
    near = difflib.get_close_matches(given.lower(), known, n=1)
    return f"did you mean {known[near[0]]}?" if near else f"choose one of {', '.join(known.values())}"


def require_at_least(name: str, value: float | None, least: float) -> None:
    """Refuse an option that is not a number of at least this much; None, for the default, is accepted.

    Raises:
        UsageError: It is less, or no number.
    """
    if value is not None and not (isinstance(value, int | float) and value >= least):
        wanted = f"{least:g} or more"
        raise UsageError(f"{name} is {value!r}, not {wanted}", where=option_of(name), hint=f"pass {wanted}")


def require_one_of(name: str, value: object, names: Iterable[str]) -> None:
    """Refuse an option that is none of these names.

    Raises:
        UsageError: It is another.
    """
    known = list(names)
    if value not in known:
        what = f"{name} is {value!r}, none of {', '.join(known)}"
        raise UsageError(what, where=option_of(name), hint=choice(str(value), known))


def option_of(name: str) -> str:
    """Return the command line's spelling of an argument's name."""
    return f"--{name.replace('_', '-')}"


_NO_PERMISSION = "change the permissions, or use another file or folder"
_NO_FOLDER = "this name, or one in front of it, is a file where a folder is needed: use another path"
_OF_A_PATH = {
    errno.EACCES: _NO_PERMISSION,
    errno.EPERM: _NO_PERMISSION,
    errno.EROFS: _NO_PERMISSION,
    errno.EEXIST: _NO_FOLDER,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EISDIR: "this is a folder where a file is needed: use another path",
    errno.ENAMETOOLONG: "use a shorter path",
    errno.ENOENT: "check the path: it cannot be read or created",
}
"""Hint for each error of the operating system that the user's paths can cause."""


def describe(error: Exception) -> IxtuneError:
    """Convert an exception to an `IxtuneError` with a message for users; an `IxtuneError` is returned unchanged."""
    if isinstance(error, IxtuneError):
        return error
    number = error.errno if isinstance(error, OSError) else None
    where = str(error.filename) if isinstance(error, OSError) and error.filename else None
    # safetensors and torch raise their own types, with the message of the operating system
    if number in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error):
        return IxtuneError(
            "no space left on the disk",
            where=where,
            hint="free some space, or write to another folder; nothing half-written is left",
        )
    if number in _OF_A_PATH:
        return IxtuneError(os.strerror(number).lower(), where=where, hint=_OF_A_PATH[number])
    if type(error).__name__ == "OutOfMemoryError":  # torch's error, which must not be imported here
        return IxtuneError(
            "out of GPU memory",
            hint="run `ixtune plan` to see what fits: more checkpointed layers, smaller packs, a smaller hd_num",
        )
    first_line = next(iter(str(error).splitlines()), "")
    return IxtuneError(
        f"internal error: {type(error).__name__}: {first_line}",
        hint="rerun the command with --debug for the traceback, and report it",
    )
