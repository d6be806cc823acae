"""Read MMBench's tables: multiple-choice questions, each with its image in base64.

    index  question  hint  A  B  C  D  answer  category  l2-category  image

The released files contain every question once per option, each time with the options in another order: index
241, 1000241, 2000241, ... The first holds the image, the others give its index. Official figures (CircularEval)
count a question as right only if it is answered correctly in every order; a plain pass asks each once.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ixtune.data.benchmarks.item import ItemDraft
from ixtune.data.benchmarks.values import question_in, references_in
from ixtune.data.containers.tables import csv_entries
from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.fields import require_text, shown
from ixtune.data.schemas.image_references import decoded_base64
from ixtune.data.sources.entry import Entry

_ORDERS = 1_000_000
# a shorter cell is the index of the question that has the image
_PICTURE_CHARACTERS = 64
_EMPTY = ("", "nan")  # as the tables were written by pandas


def entries(path: Path) -> Iterator[Entry]:
    """Yield the rows; a row over 32 MiB, image included, is a fault and is never decoded."""
    return csv_entries(path, "\t")


def draft(fields: Mapping[str, Any], entry: Entry) -> ItemDraft:
    """Convert a row to a draft."""
    del entry
    cells = {name: cell for name, cell in fields.items() if cell.strip() not in _EMPTY}
    index = cells.get("index", "").strip()
    if not index.isascii() or not index.isdigit():
        raise RecordError(Reason.BAD_ID, f"`index` is {shown(index)}", hint="write the whole number of the question")
    number = int(index)
    question, hint = question_in(cells), cells.get("hint", "").strip()
    require_text(hint, "`hint`")
    options = options_of({letter: cells[letter] for letter in string.ascii_uppercase if letter in cells})
    references = letters_of(references_in(cells, "answer"), options)
    image = cells.get("image", "").strip()
    if not image:
        raise RecordError(Reason.MISSING_FIELD, "there is no `image`", hint="download the table again")
    shared = len(image) <= _PICTURE_CHARACTERS
    return ItemDraft(
        str(number),
        f"{hint}\n{question}" if hint else question,
        references,
        images=() if shared else (decoded_base64(image, "`image`"),),
        same_as=image if shared else None,
        options=options,
        kind=cells.get("category", ""),
        group=str(number % _ORDERS),
    )


def options_of(value: Any) -> dict[str, str]:
    """Return letter -> text for options given as a mapping of letters, or as a list that gets letters in its order.

    Raises:
        RecordError: It is neither, has fewer than two options, or one that is not text.
    """
    if isinstance(value, list) and len(value) <= len(string.ascii_uppercase):
        value = dict(zip(string.ascii_uppercase, value, strict=False))
    if not isinstance(value, Mapping) or len(value) < 2:
        raise RecordError(
            Reason.BAD_FIELD, f"the options are {shown(value)}", hint='write two or more, as {"A": "left", ...}'
        )
    for letter, text in value.items():
        if letter not in set(string.ascii_uppercase) or not isinstance(text, str) or not text.strip():
            raise RecordError(
                Reason.BAD_FIELD,
                f"the option {shown(letter)} is {shown(text)}",
                hint="give each option one letter from A to Z, and a text",
            )
        require_text(text, f"the option {letter}")
    return {letter: text.strip() for letter, text in value.items()}


def letters_of(references: tuple[str, ...], options: Mapping[str, str]) -> tuple[str, ...]:
    """Return the letters of the right options, which are given by letter or by text.

    Raises:
        RecordError: One is not an option, or is a text that several options have.
    """
    found = []
    for reference in map(str.strip, references):
        letters = [reference] if reference in options else [key for key, text in options.items() if text == reference]
        if len(letters) != 1:
            raise RecordError(
                Reason.BAD_FIELD,
                f"the answer {shown(reference)} is none of the options {', '.join(options)}",
                hint="write the letter of the right option",
            )
        found += letters
    return tuple(found)
