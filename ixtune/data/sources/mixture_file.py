"""Read the official mixture file, data.txt: one line per source with its path and an optional number.

    receipts.json 10
    chats.json 2.5

The official scripts set `given_num`: a number then means thousands of records per epoch. That is the default here
too, and the result is printed. Without it, a number is a ratio: how often each record of the file appears in an
epoch (MODEL.md 6). In both cases, fewer records are drawn without replacement; if more are requested than there are,
all appear in the epoch and the rest are random repeats.

Unlike in the official scripts, paths are relative to the file itself and may contain spaces.
"""

from __future__ import annotations

import codecs
import math
from pathlib import Path

from ixtune.data.sources.source import Source
from ixtune.errors import UsageError
from ixtune.files import without_detours

_LARGEST_FILE_BYTES = 1 << 20
_THOUSAND = 1000


def is_mixture(path: Path) -> bool:
    """Return whether a path is that of a mixture file: a .txt, but not Excel's `Unicode text`, which is UTF-16."""
    if path.suffix.lower() != ".txt":
        return False
    try:
        with open(path, "rb") as file:
            return file.read(2) not in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    except OSError:  # reading the file reports the error
        return True


def read_mixture(path: Path, given_num: bool = True) -> tuple[Source, ...]:
    """Return the sources of a mixture file, with paths relative to the working directory; blank lines are skipped.

    Args:
        path: The file.
        given_num: Numbers are thousands of records; else ratios, which may be left out.

    Raises:
        UsageError: The file cannot be read, or it holds mistakes; `notes` lists every one with its line.
    """
    sources, mistakes = [], []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            sources.append(_source(line.strip(), path.parent, given_num))
        except ValueError as error:
            mistakes.append(f"{path}:{number}: {error}")
    if mistakes:
        raise UsageError(
            f"{len(mistakes)} mistake{'s' * (len(mistakes) > 1)} in the mixture file",
            where=str(path),
            hint="write a path and a number in each line; nothing was started",
            notes=mistakes,
        )
    if not sources:
        raise UsageError("the mixture file names no source", where=str(path), hint="write a path in each line")
    return tuple(sources)


def _source(line: str, folder: Path, given_num: bool) -> Source:
    """Parse a line; a ValueError says what is wrong with it."""
    name, number = line, None
    if not _exists(folder / line):
        words = line.rsplit(maxsplit=1)
        number = _number(words[1]) if len(words) == 2 else None
        name = words[0] if number is not None else line
    given = folder / name
    if not _exists(given):
        here = ", but there is one relative to the current folder" if _exists(Path(name)) else ""
        raise ValueError(f"there is no {given}{here}; paths are relative to the mixture file")
    given = without_detours(given)
    if number is None:
        if given_num:
            raise ValueError("there is no number after the path; with --ratios none is needed")
        return Source(path=str(given))
    if not 0 < number < math.inf:
        raise ValueError(f"the number should be above 0, found {line.rsplit(maxsplit=1)[1]}")
    if not given_num:
        return Source(path=str(given), weight=number)
    count = round(number * _THOUSAND)
    if not count:
        raise ValueError(f"{number:g} thousand records is less than one")
    return Source(path=str(given), count=count)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # such as a name longer than any
        return False


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _text(path: Path) -> str:
    where, hint = str(path), "pass a text file with a path and a number in each line"
    try:
        with open(path, "rb") as file:
            content = file.read(_LARGEST_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"the mixture file cannot be read: {error.strerror}", where=where, hint=hint) from error
    if len(content) > _LARGEST_FILE_BYTES:
        raise UsageError("this is not a mixture file: larger than 1 MiB", where=where, hint=hint)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(
            "the mixture file is not UTF-8 text", where=f"{path}:{line}", hint="save it in UTF-8"
        ) from error
