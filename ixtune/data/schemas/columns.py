"""Tables with a question and an answer in columns -> records.

Our columns are these; a table's are taken for them only under exactly these names, or as `--columns` says:

    image       a path, the bytes of an image, {"bytes", "path"}, or a list of them; several columns joined by commas
    question    where there is none, the same for all rows is given by --question
    answer      a text or a number; of a list the first is trained on, and all count as right when answers are scored
    id, system, hd_num

`<image>` (or `<ImageHere>`) in a question says where an image stands; without it, all stand in front of the question.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from ixtune.data.record import ImageRef, Record, Turn
from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.fields import is_missing, listed, place_name, record_hd_num, record_id, require_text, shown
from ixtune.data.schemas.image_references import image_of, images_of
from ixtune.data.schemas.turns import IMAGE, whole_conversation
from ixtune.data.sources.entry import Entry
from ixtune.data.sources.source import Reading, Source
from ixtune.data.text.template import PLACEHOLDER
from ixtune.errors import UsageError

COLUMNS = {
    "image": ("image", "images", "file_name"),
    "question": ("question",),
    "answer": ("answer", "answers"),
    "id": ("id",),
    "system": ("system",),
    "hd_num": ("hd_num",),
}
"""Our columns, each with the names that are taken for it."""

# what others call them: offered in messages, never taken
_ALIKE = {
    "image": (
        "img",
        "image_path",
        "img_path",
        "image_file",
        "picture",
        "photo",
        "file",
        "filename",
        "path",
        "jpg",
        "png",
    ),
    "question": ("query", "prompt", "instruction", "input", "problem", "problems"),
    "answer": ("response", "output", "label", "target", "caption", "text", "completion", "solution", "ground_truth"),
}
_WHOLE_FLOATS = 2**53
_MOST_BITS = 256


def check_columns(available: Iterable[str], source: Source) -> dict[str, str]:
    """Which column of a table is which of ours.

    Args:
        available: The table's columns.
        source: What the user says of them. "" as the name of theirs says that there is none.

    Returns:
        Our name -> theirs, several columns of images joined by commas; "" where the user says that there is none.

    Raises:
        UsageError: A column that is named is not there, question or answer are missing, or it cannot be told.
    """
    found = list(available)
    columns, wrong = _named(found, source)
    said = {ours for ours, _ in source.columns}
    for ours, names in COLUMNS.items():
        if ours in said:
            continue
        exact = [name for name in names if name in found]
        if len(exact) > 1:
            wrong.append(f"{ours} may be any of {listed(exact)}")
        elif exact:
            columns[ours] = exact[0]
    if not columns.get("answer"):
        wrong.append("there is no column answer" + _offer("answer", found))
    if columns.get("question") and source.question is not None:
        wrong.append(f"there is the column {columns['question']}, and a question for all rows too")
    elif not columns.get("question") and source.question is None:
        wrong.append("there is neither a column question nor a question for all rows" + _offer("question", found))
    if "image" not in columns and "image" not in said and (offer := _offer("image", found)):
        wrong.append("no column is taken for the images" + offer + ", or --columns image= if there are none")
    if wrong:
        raise UsageError(
            wrong[0],
            where=source.path,
            hint="say what is what, such as --columns image=photo,question=q,answer=a; or --question for all rows",
            notes=[*wrong[1:], f"columns found: {', '.join(map(repr, found)) or 'none'}"],
        )
    return columns


def described(columns: Mapping[str, str], available: Iterable[str], source: Source) -> str:
    """What was taken for what, in one line for people."""
    parts = [ours if ours == theirs else f"{ours} from {theirs}" for ours, theirs in columns.items() if theirs]
    if source.question is not None:
        parts.append("the same question for all")
    if columns.get("image"):
        parts.append(f"images in front of the question unless it says {IMAGE}")
    used = {name for theirs in columns.values() for name in (theirs, *theirs.split(","))}
    if ignored := [name for name in available if name not in used]:
        parts.append(f"not used: {listed(ignored)}")
    return ", ".join(parts)


def record_from_columns(value: Mapping[str, Any], entry: Entry, reading: Reading) -> Record:
    """The record of a row.

    Args:
        value: Names of columns -> values.
        entry: Where the row stands.
        reading: What the columns mean, and what holds for all rows.

    Raises:
        RecordError: A cell is empty that may not be, or of the wrong type.
    """
    columns = dict(reading.columns)
    _refuse_what_would_be_lost(value, columns)
    images = _images(value, columns.get("image"))
    question = reading.question or ""
    if theirs := columns.get("question"):
        question = _text(value.get(theirs), f"`{theirs}`")
        if not question.strip():
            raise RecordError(
                Reason.MISSING_FIELD,
                f"`{theirs}` is empty",
                hint=f"write the question, or {IMAGE} if the image alone is the question",
            )
    answers = _answers(value, columns["answer"])
    turns = [Turn("user", _with_images(question, len(images))), Turn("assistant", _ours(answers[0]))]
    system = _cell(value, columns, "system")
    own = None if _is_empty(system) else _ours(_text(system, f"`{columns['system']}`"))
    return Record(
        id=_id(value, columns, entry),
        images=images,
        turns=whole_conversation(turns, own, reading.system, len(images), IMAGE),
        source=entry.file,
        place=entry.place,
        hd_num=_hd_num(_cell(value, columns, "hd_num")),
        references=answers if isinstance(value.get(columns["answer"]), list | tuple) else (),
    )


def _named(found: Sequence[str], source: Source) -> tuple[dict[str, str], list[str]]:
    """The columns that the user names, and what is wrong with them."""
    columns: dict[str, str] = {}
    wrong: list[str] = []
    for ours, theirs in source.columns:
        if ours not in COLUMNS:
            near = difflib.get_close_matches(ours, COLUMNS, n=1)
            wrong.append(f"--columns {ours}={theirs}: ours are {', '.join(COLUMNS)}" + _did_you_mean(near))
            continue
        if ours in columns:
            wrong.append(f"--columns names {ours} twice")
            continue
        names = [theirs] if theirs in found or ours != "image" else theirs.split(",")
        for name in names if theirs else ():
            if name not in found:
                near = difflib.get_close_matches(name, found, n=1, cutoff=0.5)
                wrong.append(f"--columns {ours}={theirs}: there is no column {name!r}" + _did_you_mean(near))
        columns[ours] = theirs
    return columns, wrong


def _offer(ours: str, found: Sequence[str]) -> str:
    """A column that may be meant, as a question."""
    lower = {name.lower(): name for name in reversed(found)}
    near = [name for name in (*COLUMNS[ours], *_ALIKE[ours]) if name in lower]
    near += [name for known in COLUMNS[ours] for name in difflib.get_close_matches(known, lower, n=1, cutoff=0.7)]
    return f": --columns {ours}={lower[near[0]]}?" if near else ""


def _did_you_mean(near: Sequence[str]) -> str:
    return f"; did you mean {near[0]!r}?" if near else ""


def _refuse_what_would_be_lost(value: Mapping[str, Any], columns: Mapping[str, str]) -> None:
    """JSON need not have the same fields in every record, and which column is which was told by the first ones."""
    for ours, names in COLUMNS.items():
        for name in names if ours not in columns else ():
            if not _is_empty(value.get(name)):
                raise RecordError(
                    Reason.BAD_FIELD,
                    f"there is a `{name}`, which the first records have not",
                    hint=f"say what it is: --columns {ours}={name}, or --columns {ours}= to leave it out",
                )


def _cell(value: Mapping[str, Any], columns: Mapping[str, str], ours: str) -> Any:
    theirs = columns.get(ours)
    return value.get(theirs) if theirs else None


def _images(value: Mapping[str, Any], theirs: str | None) -> tuple[ImageRef, ...]:
    """The images of a row, column by column; an empty cell is no image."""
    if not theirs:
        return ()
    images: list[ImageRef] = []
    for name in [theirs] if theirs in value else theirs.split(","):
        cell = value.get(name)
        if _is_empty(cell):
            continue
        if isinstance(cell, list | tuple):
            images += images_of(cell, name)
        else:
            images.append(image_of(cell, f"`{name}`"))
    return tuple(images)


def _with_images(question: str, images: int) -> str:
    """A question with our placeholder for each image, in front of it unless it says where."""
    text = _ours(question)
    return text if PLACEHOLDER in text else PLACEHOLDER * images + text


def _ours(text: str) -> str:
    """A text with our placeholder; in an answer or a system prompt it is then refused as one."""
    return text.replace(IMAGE, PLACEHOLDER)


def _answers(value: Mapping[str, Any], theirs: str) -> tuple[str, ...]:
    """The answers of a row, the one to be trained on first."""
    cell = value.get(theirs)
    if not isinstance(cell, list | tuple):
        return (_text(cell, f"`{theirs}`"),)
    if not cell:
        raise RecordError(Reason.MISSING_FIELD, f"`{theirs}` is an empty list", hint="write the answer")
    return tuple(_text(one, f"`{theirs}` {number}") for number, one in enumerate(cell, start=1))


def _text(value: Any, where: str) -> str:
    """A text, or a number as it is written."""
    if is_missing(value):
        found = f"{where} is {'NaN' if isinstance(value, float) else 'null or absent'}"
        raise RecordError(Reason.MISSING_FIELD, found, hint="write a text, or take the row out")
    if isinstance(value, str):
        require_text(value, where)
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() <= _MOST_BITS:
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        # where some cells are empty, tables hold whole numbers as floats, and nobody answers 42.0
        return str(int(value)) if value.is_integer() and abs(value) < _WHOLE_FLOATS else repr(value)
    if isinstance(value, Decimal) and value.is_finite() and abs(value.adjusted()) < _MOST_BITS:
        return format(value, "f")
    raise RecordError(
        Reason.BAD_FIELD,
        f"{where} is {shown(value)}",
        hint="write what shall be said as a text",
    )


def _id(value: Mapping[str, Any], columns: Mapping[str, str], entry: Entry) -> str:
    given = _cell(value, columns, "id")
    if _is_empty(given):
        return place_name(entry)
    return record_id({"id": _whole(given)}, entry)


def _hd_num(value: Any) -> int | None:
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        value = int(value.strip()[:_MOST_BITS])
    return record_hd_num({"hd_num": None if _is_empty(value) else _whole(value)})


def _whole(value: Any) -> Any:
    """A whole number that a table holds as a float."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < _WHOLE_FLOATS else value


def _is_empty(value: Any) -> bool:
    """Whether a cell holds nothing, in any of the ways that tables have."""
    return is_missing(value) or (isinstance(value, str) and not value.strip()) or value in ([], ())
