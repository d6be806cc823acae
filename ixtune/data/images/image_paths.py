"""Resolve image paths: always below the image root, with the spelling variants found in real data."""

from __future__ import annotations

import difflib
import functools
import os
import re
import stat
import unicodedata
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from ixtune.data.rejects import Reason, RecordError

SPELLINGS = {
    "path_backslashes": "a path has backslashes; they are read as slashes",
    "path_percent": "a path has percent escapes such as %20; they are decoded",
    "path_spaces": "a path has spaces around it; they are removed",
    "path_unicode": "a path spells its accents in another Unicode form than the file's name",
    "path_letter_case": "a path differs from the file's name in upper and lower case only",
}
"""Codes of the changes made to a path to find its file, with their meaning."""

Folders = dict[str, tuple[str, str]]
"""Cache: folder as given -> its prefix below the image root, and its real path."""

_DRIVE = re.compile(r"^[A-Za-z]:[\\/]")
_PERCENT = re.compile(r"%[0-9A-Fa-f]{2}")
_FOLDERS_CACHED = 64
# listing a larger folder to suggest a similar name takes longer than it is worth
_MOST_NAMES = 20_000


@dataclass(frozen=True, slots=True)
class Located:
    """The file that a path refers to; it need not exist.

    Attributes:
        path: Relative to the image root, with slashes.
        file: The file itself.
        notes: Codes of `SPELLINGS`.
    """

    path: str
    file: Path
    notes: tuple[str, ...] = ()


def inside(root: Path, given: str) -> tuple[str, Path]:
    """Resolve a path literally, relative to the image root; the file need not exist.

    Args:
        root: The image root, resolved.
        given: Relative to it, or absolute below it.

    Raises:
        RecordError: The path is outside the root, perhaps through a link, or does not exist.
    """
    try:
        path = (root / given).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # circular links, a null character
        raise RecordError(
            Reason.PICTURE_UNREADABLE, "the path does not exist", where=given, hint="correct the path"
        ) from error
    if not path.is_relative_to(root):
        raise RecordError(
            Reason.PATH_OUTSIDE_ROOT,
            f"the path is outside the image root {root}",
            where=given,
            hint=_prefix_hint(root, given)
            or "move the image below the image root, or pass a higher folder with --image-root",
        )
    return path.relative_to(root).as_posix(), path


def locate(root: Path, given: str, folders: Folders | None = None) -> Located:
    """Find the file that a path refers to: try the literal path first, then `SPELLINGS`.

    Args:
        root: The image root, resolved.
        given: Relative to it, or absolute below it.
        folders: Cache to share between calls, so that each folder is resolved once.

    Raises:
        RecordError: There is no such file under any spelling, several match, or the path is outside the root.
    """
    if folders is not None and (plain := _beside_others(root, given, folders)) is not None:
        return plain
    outside: RecordError | None = None
    try:
        path, file = inside(root, given)
        if _is_there(file):
            return Located(path, file)
    except RecordError as error:
        outside = error
    for text, notes in _spellings(given):
        found = _look_up(root, text)
        if found is not None:
            path, file, respelled = found
            return Located(path, file, (*notes, *respelled))
    if outside is not None:
        raise outside
    raise _missing(root, given)


def _beside_others(root: Path, given: str, folders: Folders) -> Located | None:
    """Return the literal file if it is a regular one in a known folder: one system call instead of ten."""
    head, _, name = given.rpartition("/")
    if name in ("", ".", "..") or "\0" in given or given.startswith("/"):
        return None
    if head not in folders:
        try:
            relative, folder = inside(root, head)
        except RecordError:
            return None
        folders[head] = ("" if relative == "." else f"{relative}/", str(folder))
    relative, real = folders[head]
    try:
        if not stat.S_ISREG(os.lstat(f"{real}/{name}").st_mode):
            return None
    except OSError:
        return None
    return Located(relative + name, Path(real, name))


def is_file_below(root: Path, given: str) -> bool:
    """Return whether a path, exactly as spelled, is a file below the image root."""
    try:
        return _is_there(inside(root, given)[1])
    except RecordError:
        return False


def _is_there(file: Path) -> bool:
    try:
        os.lstat(file)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # the name is too long, or the folder is not accessible: opening the file reports it
        return True
    return True


def _spellings(given: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the path as given and its likely variants; changes accumulate."""
    text = given
    notes: tuple[str, ...] = ()
    yield text, notes
    for code, change in (
        ("path_spaces", str.strip),
        ("path_backslashes", lambda text: text if _DRIVE.match(text) else text.replace("\\", "/")),
        ("path_percent", _unquoted),
    ):
        changed = change(text)
        if changed != text:
            text, notes = changed, (*notes, code)
            yield text, notes


def _unquoted(text: str) -> str:
    if not _PERCENT.search(text):
        return text
    try:
        return urllib.parse.unquote(text, errors="strict")
    except UnicodeDecodeError:
        return text


def _look_up(root: Path, text: str) -> tuple[str, Path, tuple[str, ...]] | None:
    """Find the file of a path name by name; its notes list the names that are spelled differently on the disk.

    Raises:
        RecordError: Two files match, or a link leads outside the root.
    """
    relative = PurePosixPath(os.path.normpath(text))
    if relative.is_absolute():
        if not relative.is_relative_to(root):
            return None
        relative = relative.relative_to(root)
    if ".." in relative.parts or "\0" in text:
        return None
    folder, notes = root, set()
    for name in relative.parts:
        if _is_there(folder / name):
            folder = folder / name
            continue
        names = _names_in(folder).get(_folded(name), ())
        same_case = [one for one in names if unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", name)]
        fitting = same_case or names
        if not fitting:
            return None
        if len(fitting) > 1:
            raise RecordError(
                Reason.PICTURE_MISSING,
                f"there is no such file, and several differ from it in upper and lower case only: {', '.join(fitting)}",
                where=text,
                hint="write the exact name of the file",
            )
        notes.add("path_unicode" if same_case else "path_letter_case")
        folder = folder / fitting[0]
    path, file = inside(root, str(folder.relative_to(root)))
    return path, file, tuple(code for code in SPELLINGS if code in notes)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _names_in(folder: Path) -> dict[str, tuple[str, ...]]:
    """Return the names in a folder by their normalized spelling; empty if the folder is not readable."""
    try:
        return _listed(str(folder), os.stat(folder).st_mtime_ns)
    except OSError:
        return {}


@functools.lru_cache(maxsize=_FOLDERS_CACHED)
def _listed(folder: str, changed_at: int) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for name in sorted(os.listdir(folder)):
        key = _folded(name)
        found[key] = (*found.get(key, ()), name)
    return found


def _missing(root: Path, given: str) -> RecordError:
    """Return the error for a path without a file, with the likeliest fix."""
    if _DRIVE.match(given):
        hint = _prefix_hint(root, given)
        return RecordError(
            Reason.PATH_OUTSIDE_ROOT,
            "a path with a drive letter, from a Windows machine",
            where=given,
            hint=hint or "remove the leading folders so that paths start below the image root, and use slashes",
        )
    anywhere = root == Path(root.anchor)  # an image of the command line, which has no root to stay in
    near = _near(root, os.path.relpath(given, root) if anywhere else given)
    if anywhere:
        hint = f"did you mean /{near}?" if near else "check the path"
        return RecordError(Reason.PICTURE_MISSING, "there is no such image", where=given, hint=hint)
    return RecordError(
        Reason.PICTURE_MISSING,
        f"there is no such image below {root}",
        where=given,
        hint=f"did you mean {near}?" if near else "check the path, or pass the folder it starts in with --image-root",
    )


def _prefix_hint(root: Path, given: str) -> str | None:
    """Return the hint for a path from another machine whose last names exist below the image root."""
    pure = PureWindowsPath(given) if _DRIVE.match(given) or "\\" in given else PurePosixPath(given)
    names = [name for name in pure.parts if name != pure.anchor]
    if not pure.anchor or ".." in names:
        return None
    for start in range(1, len(names)):
        rest = names[start:]
        if _is_there(root.joinpath(*rest)):
            separator = "\\" if isinstance(pure, PureWindowsPath) else "/"
            prefix = given[: len(given) - len(separator.join(rest))]
            return f"{'/'.join(rest)} is below the image root: remove {prefix} from the start of the paths"
    return None


def _near(root: Path, given: str) -> str | None:
    """Return a file with a similar name in the folder of the missing file."""
    wanted = PurePosixPath(os.path.normpath(given.replace("\\", "/")))
    if wanted.is_absolute() or ".." in wanted.parts:
        return None
    names = _names_in(root / wanted.parent)
    if len(names) > _MOST_NAMES:
        return None
    same_stem = [one for key in names for one in names[key] if PurePosixPath(one).stem == wanted.stem]
    near = same_stem or difflib.get_close_matches(wanted.name, [one for key in names for one in names[key]], 1, 0.85)
    return str(wanted.parent / near[0]) if near else None
