"""Parse the data config (several sources in one YAML file, each with its settings), and --format and --columns.

    sources:
      - path: receipts.csv          # relative to this file
        columns: {image: photo, question: q, answer: a}
        hd_num: 25
        weight: 2                   # each record twice an epoch; or count: the records in an epoch
      - path: docs/chats.jsonl
        image_root: docs/pages
        system: You read documents.
      - path: owner/name
        format: hub
        split: train

All mistakes are reported at once, each with its line.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ixtune.data.remote_files import is_remote
from ixtune.data.schemas.column_roles import COLUMNS
from ixtune.data.schemas.fields import shown
from ixtune.data.sources.source import Container, Schema, Source
from ixtune.errors import UsageError
from ixtune.files import without_detours
from ixtune.layout import MAX_HD_NUM
from ixtune.recipe.yaml_text import KeyPath, YamlKind, YamlText

_KIND = YamlKind(
    "data config",
    "pass a YAML file with a list of sources",
    "write a list: sources:, and below it - path: FILE for each",
)
MISSING_PLACEHOLDER = ("front", "reject")
_WORDS = {**{one.value: one for one in Container}, **{one.value: one for one in Schema}}


def is_config(path: Path) -> bool:
    """Return whether a path is that of a data config: no other YAML file is read here."""
    return path.suffix.lower() in (".yaml", ".yml")


def read_config(path: Path) -> tuple[Source, ...]:
    """Return the sources of a data config, with paths relative to the working directory.

    Raises:
        UsageError: The file cannot be read, or it holds mistakes; `notes` lists every one.
    """
    reading = YamlText(path, _KIND)
    tree = reading.file()
    _require_known(reading, (), tree, ("sources",))
    given = tree.get("sources")
    if not isinstance(given, list) or not given:
        reading.mistake(reading.place(("sources",)), "sources should be a list of sources")
        given = []
    sources = [_source(reading, ("sources", index), one) for index, one in enumerate(given)]
    if not reading.mistakes:
        return tuple(one for one in sources if one is not None)
    count = len(reading.mistakes)
    raise UsageError(
        f"{count} mistake{'s' * (count > 1)} in the data config",
        where=str(path),
        hint="correct the lines listed; nothing was started",
        notes=[f"{place.text}: {text}" for place, text in sorted(reading.mistakes)],
    )


def format_of(word: str) -> tuple[Container | None, Schema | None]:
    """Parse --format: a container, a schema, or both as in `parquet+openai`.

    Raises:
        UsageError: It is none of the words.
    """
    container: Container | None = None
    schema: Schema | None = None
    for part in word.lower().split("+"):
        meant = _WORDS.get(part)
        if isinstance(meant, Container) and container is None:
            container = meant
        elif isinstance(meant, Schema) and schema is None:
            schema = meant
        else:
            near = difflib.get_close_matches(part, _WORDS, n=1)
            raise UsageError(
                f"there is no format {word}" + (f"; did you mean {near[0]}?" if near and near[0] != part else ""),
                hint="use one word from either list, or one from each, such as llava, or parquet+openai",
                notes=[
                    f"how records are stored: {', '.join(Container)}",
                    f"what their fields mean: {', '.join(Schema)}",
                ],
            )
    return container, schema


def columns_of(text: str) -> tuple[tuple[str, str], ...]:
    """Parse --columns: `image=photo,question=q`; `image=front,back` names two columns.

    Raises:
        UsageError: It has another form.
    """
    columns: list[tuple[str, str]] = []
    for part in text.split(",") if text else ():
        ours, equals, theirs = part.partition("=")
        if equals and ours.strip():
            columns.append((ours.strip(), theirs.strip()))
        elif not equals and columns and part.strip():
            columns[-1] = (columns[-1][0], f"{columns[-1][1]},{part.strip()}")
        else:
            raise UsageError(
                f"--columns {text} is not of the form OURS=THEIRS,...",
                hint="write such as --columns image=photo,question=q,answer=a; "
                "a column with a comma or = in its name can be given in a data config",
            )
    return tuple(columns)


def _source(reading: YamlText, keys: KeyPath, value: Any) -> Source | None:
    """Read one source of the list; None if it has mistakes."""
    before = len(reading.mistakes)
    name = _dotted(keys)
    if not isinstance(value, dict):
        found = "" if value is None else f", found {shown(value)}"
        reading.mistake(reading.place(keys), f"{name} should be a section with a path{found}")
        return None
    _require_known(reading, keys, value, ("path", *_READERS, "format", "columns"))
    fields: dict[str, Any] = {}
    for key, read in _READERS.items():
        if value.get(key) is not None:
            try:
                fields[key] = read(value[key])
            except ValueError as error:
                found = f"{name}.{key} should be {error}, found {shown(value[key])}"
                reading.mistake(reading.place((*keys, key)), found)
    fields["container"], fields["schema"] = _format(reading, (*keys, "format"), value.get("format"))
    fields["columns"] = _columns(reading, (*keys, "columns"), value.get("columns"))
    if value.get("weight") is not None and value.get("count") is not None:
        reading.mistake(
            reading.place((*keys, "count")), f"{name} has a weight and a count, which contradict each other; keep one"
        )
    path = _path(reading, keys, value.get("path"), fields)
    if is_remote(fields.get("image_root")):
        fields["remote_root"] = fields.pop("image_root")
    if fields.get("image_root") is not None:
        fields["image_root"] = root = without_detours(reading.path.parent / fields["image_root"])
        if not root.is_dir():
            place = reading.place((*keys, "image_root"))
            reading.mistake(place, f"{name}.image_root: there is no folder {root}")
    return Source(path=path, **fields) if len(reading.mistakes) == before else None


def _path(reading: YamlText, keys: KeyPath, value: Any, fields: dict[str, Any]) -> str:
    """Read the path of a source, relative to the working directory."""
    place, name = reading.place((*keys, "path")), _dotted((*keys, "path"))
    if not isinstance(value, str) or not value:
        found = "is missing: a file, a folder, or the name of a dataset on the hub"
        reading.mistake(place, f"{name} {found}" if value is None else f"{name} should be a text, found {shown(value)}")
        return ""
    if fields["container"] is Container.HUB or is_remote(value):
        return value
    path = reading.path.parent / value
    try:
        there = path.exists()
    except OSError:  # such as a name longer than any
        there = False
    if not there:
        reading.mistake(place, f"{name}: there is no file or folder {path}; for a dataset on the hub add format: hub")
    return str(without_detours(path))


def _format(reading: YamlText, keys: KeyPath, value: Any) -> tuple[Container | None, Schema | None]:
    if value is None:
        return None, None
    if isinstance(value, str):
        try:
            return format_of(value)
        except UsageError as error:
            reading.mistake(reading.place(keys), f"{error.what}; known are {', '.join(_WORDS)}")
    else:
        reading.mistake(reading.place(keys), f"{_dotted(keys)} should be a text such as llava, found {shown(value)}")
    return None, None


def _columns(reading: YamlText, keys: KeyPath, value: Any) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    if not isinstance(value, dict):
        found = f"{_dotted(keys)} should be a section of OURS: THEIRS, found {shown(value)}"
        reading.mistake(reading.place(keys), found)
        return ()
    _require_known(reading, keys, value, tuple(COLUMNS))
    columns = []
    for ours, theirs in value.items():
        names = theirs if isinstance(theirs, list) and ours == "image" and theirs else [theirs]
        if all(isinstance(one, str) for one in names):
            columns.append((ours, ",".join(names)))
        else:
            wanted = "a column's name, or a list of them" if ours == "image" else "a column's name"
            found = f"{_dotted((*keys, ours))} should be {wanted}, found {shown(theirs)}"
            reading.mistake(reading.place((*keys, ours)), found)
    return tuple(columns)


def _require_known(reading: YamlText, keys: KeyPath, value: dict[str, Any], known: tuple[str, ...]) -> None:
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(str(key).lower(), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
            reading.mistake(reading.place((*keys, key)), f"unknown key {_dotted((*keys, key))}{hint}")


def _dotted(keys: KeyPath) -> str:
    return ".".join(map(str, keys))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a text")
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError("a whole number of at least 1")
    return value


def _hd_num(value: Any) -> int:
    if _whole(value) > MAX_HD_NUM:
        raise ValueError(f"at most {MAX_HD_NUM}")
    return int(value)


def _positive(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ValueError("a number above 0")
    return float(value)


def _missing_placeholder(value: Any) -> str:
    if value not in MISSING_PLACEHOLDER:
        raise ValueError(f"one of {', '.join(MISSING_PLACEHOLDER)}")
    return str(value)


def _yes_or_no(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


_READERS: dict[str, Callable[[Any], Any]] = {
    "question": _text,
    "image_root": _text,
    "hd_num": _hd_num,
    "weight": _positive,
    "count": _whole,
    "system": _text,
    "split": _text,
    "config": _text,
    "image_pattern": _text,
    "encoding": _text,
    "missing_placeholder": _missing_placeholder,
    "allow_image_text": _yes_or_no,
}
