"""Errors for people: what is wrong and where, how to mend it, and the exit code of the process."""

from __future__ import annotations

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
