"""Convert multiple-choice questions: options below the question, and the answer among them.

    Which number is shown?
    A. five
    B. seven

`ixtune evaluate --benchmark` asks in the same form.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from ixtune.data.record import Turn
from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.fields import is_missing, require_text, shown
from ixtune.data.schemas.image_values import is_path_of_image
from ixtune.data.schemas.value_paths import list_in_text, object_in_text

OPTION_NAMES = ("choices", "options")
"""Names of a field with the options of a question."""
OTHER_OPTION_NAMES = ("candidates", "alternatives", "answer_choices", "answer_options", "option_list", "choice_list")
"""Names that are taken for such a field where there is one of them only."""

_LETTERS = string.ascii_uppercase
_SEVERAL = re.compile(r"[A-Z](?:[,;/& ]*[A-Z])+")
_LETTER_AND_TEXT = re.compile(r"\(?([A-Za-z])[).:]\s+(\S.*)", re.DOTALL)


def options_of(value: Any, name: str) -> dict[str, str]:
    """Return letter -> text of a list of options, of an object of letters, or of a text that spells one of them.

    Args:
        value: Value of the field; null, "" and [] mean no options.
        name: Name of the field.

    Raises:
        RecordError: It is something else, or a single option.
    """
    if is_missing(value):
        return {}
    if isinstance(value, str):
        if not value.strip():
            return {}
        read = list_in_text(value)
        value = (
            value if read is None and (found := object_in_text(value)) is None else read if read is not None else found
        )
    if isinstance(value, Mapping) and isinstance(value.get("text"), list) and isinstance(value.get("label"), list):
        value = dict(zip(value["label"], value["text"], strict=False))  # AI2 ARC: {"text": [...], "label": [A, B]}
    if isinstance(value, Mapping):
        value = {str(letter).strip().upper(): text for letter, text in value.items() if not is_missing(text)}
    elif isinstance(value, list | tuple) and len(value) <= len(_LETTERS):
        value = dict(zip(_LETTERS, value, strict=False))
    if not isinstance(value, Mapping) or len(value) == 1:
        raise RecordError(
            Reason.FIELD_NOT_USED,
            f"`{name}` is {shown(value)}, not two or more options",
            hint='write a list such as ["left", "right"], or ignore it with --columns choices=',
        )
    return {letter: _option(text, letter, name) for letter, text in value.items()}


def with_options(question: str, options: Mapping[str, str]) -> str:
    """Return a question with its options below, unless it has a line for each of them already."""
    lines = question.splitlines()[1:]
    if all(any(text in line for line in lines) for text in options.values()):
        return question
    return question + "".join(f"\n{letter}. {text}" for letter, text in options.items())


def answered(answer: str, options: Mapping[str, str], name: str) -> str:
    """Return what is to be answered: the letter of an option that is given by letter or index, or its text as given.

    Args:
        answer: A letter, a letter with its text, several letters, the text of an option, or an index from 0.
        options: Options of the question.
        name: Name of the answer's field.

    Raises:
        RecordError: It is none of the options, or may be two of them.
    """
    bare = answer.strip()
    letter = bare.strip("().").upper()
    by_text = [key for key, text in options.items() if text == bare]
    at = list(options)[int(bare)] if bare.isascii() and bare.isdigit() and int(bare[:4]) < len(options) else None
    if at is not None and (not by_text or by_text == [at]):
        return at
    if at is not None:
        raise RecordError(
            Reason.BAD_FIELD,
            f"the answer {shown(answer)} in `{name}` is the number of option {at} and the text of option {by_text[0]}",
            hint="write the letter of the right option",
        )
    if letter in options and (not by_text or by_text == [letter]):
        return letter
    if by_text:
        return bare
    both = _LETTER_AND_TEXT.fullmatch(bare)
    if both is not None and options.get(both[1].upper()) == both[2].strip():
        return both[1].upper()
    several = [one for one in bare if one.isalpha()] if _SEVERAL.fullmatch(bare) else []
    if several and several == sorted(set(several)) and set(several) <= options.keys():
        return ", ".join(several)
    raise RecordError(
        Reason.BAD_FIELD,
        f"the answer {shown(answer)} in `{name}` is none of the options {', '.join(options)}",
        hint="write the letter of the right option, its text, or its number counted from 0",
    )


def require_one(answers: Sequence[str], name: str) -> None:
    """Raise if a list of answers holds several of the options: all of them may be right, or any of them.

    Raises:
        RecordError: It does.
    """
    if len(set(answers)) > 1:
        raise RecordError(
            Reason.BAD_FIELD,
            f"`{name}` is a list of {len(answers)} options",
            hint='write one option, or all that are right as one text, such as "A, C"',
        )


def require_texts(options: Mapping[str, str], name: str, image: str) -> None:
    """Raise if the options are paths of images, which would be written into the question as text.

    Args:
        options: Options of the question.
        name: Name of their field, or names joined by commas.
        image: The field with the images of the question, "" if there is none.

    Raises:
        RecordError: `IMAGE_NOT_USED`.
    """
    if options and all(is_path_of_image(text) for text in options.values()):
        shown_too = f"{image},{name}" if image else name
        raise RecordError(
            Reason.IMAGE_NOT_USED,
            f"the options in `{name}` are images",
            hint=f"show them below the question's image with --columns image={shown_too},choices=, or pass "
            "--allow-image-text if their names are meant as text",
        )


def require_shown(fields: Mapping[str, Any], turns: Sequence[Turn]) -> None:
    """Raise if a conversation has options in a field of its own that its questions do not show.

    Args:
        fields: Fields of the record that were not read.
        turns: Its turns.

    Raises:
        RecordError: `FIELD_NOT_USED`.
    """
    for name in (*OPTION_NAMES, *OTHER_OPTION_NAMES):
        if name not in fields:
            continue
        texts = _texts_of(fields[name])
        asked = "\n".join(turn.text for turn in turns if turn.role != "assistant")
        if len(texts) > 1 and not all(text in asked for text in texts):
            raise RecordError(
                Reason.FIELD_NOT_USED,
                f"`{name}` is {shown(fields[name])}, and the question does not show them",
                hint="write the options into the question, or remove the field if the answer does not refer to them",
            )


def _texts_of(value: Any) -> list[str]:
    """Return the texts of a value that may be options; empty if it is something else."""
    try:
        return list(options_of(value, "options").values()) if isinstance(value, str | list | tuple | dict) else []
    except RecordError:
        return []


def _option(text: Any, letter: str, name: str) -> str:
    if isinstance(text, int | float) and not isinstance(text, bool):
        text = str(text)
    if not isinstance(text, str) or not text.strip():
        raise RecordError(
            Reason.FIELD_NOT_USED, f"option {letter} in `{name}` is {shown(text)}", hint="write a text for each option"
        )
    require_text(text, f"option {letter}")
    return text.strip()
