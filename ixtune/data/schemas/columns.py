"""Convert tables with a question and an answer in columns to drafts.

    image       a path, the bytes of an image, {"bytes", "path"}, or a list of them; several columns joined by commas
    page        page of the document in `image`, counted from 1: a number, or a range such as 2-5
    question    if there is none, --question sets one for all rows
    answer      a text, a number, or an object, which becomes its JSON; of a list, the first is trained on and all are
                references when answers are scored
    choices     multiple-choice options, written below the question as `A. text`; a letter or an index is answered
                with the letter
    context     put above the question: ScienceQA's and MMBench's `hint`, SQuAD's `context`
    input       put below the question: Alpaca's `input` of an `instruction`
    history     earlier questions and answers, [[question, answer], ...]
    references  all reference answers
    id, system, hd_num

`<image>` (or `<ImageHere>`) in a question marks the position of an image; without it, all images precede the first
question. A column may be a path into a struct, a list or JSON text, see value_paths.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from ixtune.data.record import ImageRef, Turn
from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.choices import answered, options_of, require_one, require_texts, with_options
from ixtune.data.schemas.column_roles import EXACT_NAMES
from ixtune.data.schemas.document_pages import with_page
from ixtune.data.schemas.draft import Draft
from ixtune.data.schemas.fields import (
    LOSS_KEYS,
    is_empty,
    is_missing,
    listed,
    place_name,
    record_hd_num,
    record_id,
    refuse_unusable,
    refuse_weights,
    require_text,
    shown,
)
from ixtune.data.schemas.image_pattern import filled
from ixtune.data.schemas.image_references import images_of
from ixtune.data.schemas.turns import IMAGE, pairs_in
from ixtune.data.schemas.value_paths import object_in_text, take
from ixtune.data.sources.entry import Entry
from ixtune.data.sources.source import Reading
from ixtune.data.text.conversation_rules import PLACEHOLDER

_WHOLE_FLOATS = 2**53
_MOST_BITS = 256
_GT_PARSE = ("gt_parse", "gt_parses")
# field names of the text in lists of answers: VQA v2, TextVQA, SQuAD
_ANSWER_KEYS = ("answer", "text")


def columns_draft(fields: dict[str, Any], entry: Entry, reading: Reading) -> Draft:
    """Read a row.

    Args:
        fields: Column name -> value; fields that are read are removed.
        entry: Entry of the row, for messages.
        reading: Roles of the columns, and settings for all rows.

    Raises:
        RecordError: A cell is empty that may not be, or of the wrong type.
    """
    columns = dict(reading.columns)
    _refuse_other_fields(fields, columns)
    images = _images(fields, columns.get("image"), reading.image_pattern)
    images = with_page(images, _take(fields, columns, "page"), columns.get("page", ""))
    asked = _questions(fields, columns, reading)
    context = _take(fields, columns, "context")
    options = _options(fields, columns.get("choices"))
    if not reading.allow_image_text:
        require_texts(options, columns.get("choices", ""), columns.get("image", ""))
    cell = _take(fields, columns, "answer")
    if options and isinstance(cell := _whole(cell), int) and not isinstance(cell, bool) and 0 <= cell < len(options):
        cell = list(options)[cell]  # a number, unlike a text of digits, is always an index
    answers, several = _answers(cell, f"`{columns['answer']}`") if reading.answers else ([], False)
    if options:
        answers = [answered(one, options, columns["answer"]) for one in answers]
        require_one(answers, columns["answer"])
    turns, several_earlier = _history(_take(fields, columns, "history"))
    notes = ["earlier_references"] if several_earlier else []
    if options:
        asked[0] = with_options(asked[0], options)
        notes.append("options_in_question")
    if not is_empty(context):
        asked[0] = _text(context, f"`{columns['context']}`") + "\n" + asked[0]
    if not reading.answers:
        turns += [Turn("user", _ours(_only(asked, columns)))]
    elif len(asked) > 1:
        turns += _turns_of_lists(asked, answers, columns)
        answers, several = [], False
    else:
        turns += [Turn("user", _ours(asked[0])), Turn("assistant", _ours(answers[0]))]
    refuse_weights(fields)
    for name in ("label", *LOSS_KEYS):  # a table's column may have one of these names: only false says something
        if fields.get(name) is False:
            refuse_unusable({name: False})
    system = _take(fields, columns, "system")
    given = _take(fields, columns, "references")
    references = answers if several else []
    if not is_empty(given):
        references, _ = _answers(given, "`references`")
    return Draft(
        _id(_take(fields, columns, "id"), entry),
        images,
        turns,
        None if is_empty(system) else _ours(_text(system, f"`{columns['system']}`")),
        _hd_num(_take(fields, columns, "hd_num")),
        tuple(references),
        in_front=True,
        notes=notes,
    )


def _refuse_other_fields(fields: Mapping[str, Any], columns: Mapping[str, str]) -> None:
    """Raise for a field of ours that the first records lack: JSON need not have the same fields in every record."""
    for ours, names in EXACT_NAMES.items():
        for name in names if ours not in columns else ():
            if name in fields and name not in columns.values() and not is_empty(fields[name]):
                raise RecordError(
                    Reason.BAD_FIELD,
                    f"there is a `{name}`, which the first records lack",
                    hint=f"map it with --columns {ours}={name}, or ignore it with --columns {ours}=",
                )


def _only(asked: list[str], columns: Mapping[str, str]) -> str:
    """Return the only question of a row that is to be answered."""
    if len(asked) > 1:
        raise RecordError(
            Reason.BAD_CONVERSATIONS,
            f"`{columns['question']}` holds {len(asked)} questions",
            hint="write a record for each question",
        )
    return asked[0]


def _take(fields: dict[str, Any], columns: Mapping[str, str], ours: str) -> Any:
    theirs = columns.get(ours)
    return take(fields, theirs) if theirs else None


def _images(fields: dict[str, Any], theirs: str | None, pattern: str | None) -> tuple[ImageRef, ...]:
    """Return the images of a row, column by column; an empty cell is no image."""
    if pattern is not None:
        return images_of(filled(pattern, fields), "--image-pattern")
    if theirs == "image,images" and all(not is_empty(fields.get(name)) for name in ("image", "images")):
        raise RecordError(
            Reason.BAD_IMAGE_FIELD, "there are both `image` and `images`", hint="put all images into one of them"
        )
    images: list[ImageRef] = []
    for name in [] if not theirs else [theirs] if theirs in fields else theirs.split(","):
        cell = take(fields, name)
        if not is_empty(cell):
            images += images_of(cell, name)
    return tuple(images)


def _questions(fields: dict[str, Any], columns: Mapping[str, str], reading: Reading) -> list[str]:
    """Return the question of a row, or several if the cell holds a list."""
    theirs = columns.get("question")
    if not theirs:
        return [reading.question or ""]
    cell = take(fields, theirs)
    if isinstance(cell, Mapping):
        names = [str(name) for name in cell]
        raise RecordError(
            Reason.BAD_FIELD,
            f"`{theirs}` is {shown(cell)}",
            hint=f"name the field to ask, e.g. --columns question={theirs}.{'en' if 'en' in names else names[0]}"
            if names
            else "write the question as a text",
        )
    questions = [_text(one, f"`{theirs}`") for one in (cell if isinstance(cell, list | tuple) and cell else [cell])]
    if not all(question.strip() for question in questions):
        raise RecordError(
            Reason.MISSING_FIELD,
            f"`{theirs}` is empty",
            hint=f"write the question, or {IMAGE} if the image alone is the question",
        )
    below = _take(fields, columns, "input")
    if not is_empty(below):
        questions[0] += "\n" + _text(below, f"`{columns['input']}`")
    return questions


def _answers(cell: Any, where: str) -> tuple[list[str], bool]:
    """Return the answers of a row, the one to train on first, and whether the cell holds a list."""
    if isinstance(cell, Mapping) and isinstance(cell.get("text"), list | tuple):
        cell = cell["text"]  # SQuAD: {"text": [...], "answer_start": [...]}
    if not isinstance(cell, list | tuple):
        return [_answer(cell, where, in_list=False)], False
    if not cell:
        raise RecordError(Reason.MISSING_FIELD, f"{where} is an empty list", hint="write the answer")
    return [_answer(one, f"{where} {number}", in_list=True) for number, one in enumerate(cell, start=1)], True


def _answer(value: Any, where: str, *, in_list: bool) -> str:
    """Return an answer as text; an object becomes JSON, with its key order kept."""
    if isinstance(value, Mapping) and value:
        named = [value[key] for key in _ANSWER_KEYS if isinstance(value.get(key), str)]
        if in_list and len(named) == 1:
            return _text(named[0], where)
        value = _json(value, where)
    text = _text(value, where)
    if text[:1] == "{" and '"gt_parse' in text and isinstance(read := object_in_text(text), dict):
        inside = next((name for name in _GT_PARSE if name in read), None)
        if inside is not None:
            raise RecordError(
                Reason.FIELD_NOT_USED,
                f"{where} is Donut's annotation: `{inside}` is the answer, {listed([n for n in read if n != inside])} "
                "would be learned with it",
                hint=f"--columns answer={where.strip('`')}.{inside}, or remove --columns answer",
            )
    return text


def _json(value: Any, where: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:  # bytes, dates
        raise RecordError(Reason.BAD_FIELD, f"{where} is not JSON: {error}", hint="write the answer as text") from error


def _options(fields: dict[str, Any], theirs: str | None) -> dict[str, str]:
    """Return letter -> text of the options; empty if the row has none."""
    if not theirs:
        return {}
    if theirs in fields or "," not in theirs:
        return options_of(take(fields, theirs), theirs)
    cells = [take(fields, name) for name in theirs.split(",")]
    return options_of([_text(cell, "`choices`") for cell in cells if not is_empty(cell)], theirs)


def _history(value: Any) -> tuple[list[Turn], bool]:
    """Return the turns of earlier questions and answers, and whether one of these answers is one of several."""
    if is_empty(value):
        return [], False
    turns = []
    more = False
    for question, answer in pairs_in(value, "history"):
        answers, _ = _answers(answer, "`history`")
        more = more or len(set(answers)) > 1
        turns += [Turn("user", _ours(_text(question, "`history`"))), Turn("assistant", _ours(answers[0]))]
    return turns, more


def _turns_of_lists(questions: list[str], answers: list[str], columns: Mapping[str, str]) -> list[Turn]:
    """Return the turns of a list of questions and a list of answers."""
    if len(questions) != len(answers):
        raise RecordError(
            Reason.BAD_CONVERSATIONS,
            f"`{columns['question']}` holds {len(questions)} questions, `{columns['answer']}` {len(answers)} answers",
            hint="give each question one answer",
        )
    if columns.get("choices"):
        raise RecordError(
            Reason.FIELD_NOT_USED,
            f"there are several questions and `{columns['choices']}`",
            hint="write a separate record for each multiple-choice question",
        )
    turns = []
    for question, answer in zip(questions, answers, strict=True):
        turns += [Turn("user", _ours(question)), Turn("assistant", _ours(answer))]
    return turns


def _ours(text: str) -> str:
    """Return a text with our placeholder; a placeholder in an answer or a system prompt is refused later."""
    return text.replace(IMAGE, PLACEHOLDER)


def _text(value: Any, where: str) -> str:
    """Return a text, or a number in its written form."""
    if is_missing(value):
        found = f"{where} is {'NaN' if isinstance(value, float) else 'null or absent'}"
        raise RecordError(Reason.MISSING_FIELD, found, hint="write a text, or remove the row")
    if isinstance(value, str):
        require_text(value, where)
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() <= _MOST_BITS:
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        # if some cells are empty, tables store whole numbers as floats, but 42.0 is not a natural answer
        return str(int(value)) if value.is_integer() and abs(value) < _WHOLE_FLOATS else repr(value)
    if isinstance(value, Decimal) and value.is_finite() and abs(value.adjusted()) < _MOST_BITS:
        return format(value, "f")
    raise RecordError(Reason.BAD_FIELD, f"{where} is {shown(value)}", hint="write the value as a text")


def _id(given: Any, entry: Entry) -> str:
    if is_empty(given):
        return place_name(entry)
    return record_id({"id": _whole(given)}, entry)


def _hd_num(value: Any) -> int | None:
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        value = int(value.strip()[:_MOST_BITS])
    return record_hd_num({"hd_num": None if is_empty(value) else _whole(value)})


def _whole(value: Any) -> Any:
    """Convert a float to an int if it is a whole number, as tables store them."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < _WHOLE_FLOATS else value
