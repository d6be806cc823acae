"""Assign roles to the columns of a table, by exact names, common other names, or `--columns`.

If exactly one column fits, it is used and the choice is printed; if several fit, the user is asked.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ixtune.data.schemas.choices import OPTION_NAMES, OTHER_OPTION_NAMES
from ixtune.data.schemas.fields import SYSTEM_NAMES, listed
from ixtune.data.schemas.turns import IMAGE
from ixtune.data.schemas.value_paths import first_name
from ixtune.data.sources.source import Source
from ixtune.errors import UsageError


@dataclass(frozen=True, slots=True)
class _Role:
    """Known names of a column.

    Attributes:
        exact: Unambiguous names; the first is ours.
        others: Names that are accepted if exactly one of them is present.
    """

    exact: tuple[str, ...]
    others: tuple[str, ...] = ()


_ROLES = {
    "image": _Role(("image", "images", "file_name")),
    "question": _Role(
        ("question", "questions"),
        (
            "query",
            "prompt",
            "instruction",
            "problem",
            "problems",
            "user",
            "human",
            "question_text",
            "request",
            "prefix",
        ),
    ),
    "answer": _Role(
        ("answer", "answers"),
        (
            *("response", "output", "label", "labels", "target", "caption", "captions", "completion", "solution"),
            *("ground_truth", "text", "assistant", "gpt", "multiple_choice_answer", "reply", "answer_text", "suffix"),
            *("outputs", "correct_choice_idx", "caption_str", "answerkey"),
        ),
    ),
    "id": _Role(("id",)),
    "system": _Role(("system",), SYSTEM_NAMES),
    "hd_num": _Role(("hd_num",)),
    "choices": _Role(OPTION_NAMES, OTHER_OPTION_NAMES),
    "context": _Role(("context",)),
    "input": _Role(()),
    "history": _Role(("history",)),
    "references": _Role(("references",)),
    # kept only if an image is a document, see source_reading
    "page": _Role((), ("page", "page_number", "page_no")),
    "messages": _Role(()),
}
EXACT_NAMES = {ours: role.exact for ours, role in _ROLES.items()}
"""Unambiguous names of our columns."""
COLUMNS = tuple(_ROLES)
"""The names on the left of `--columns OURS=THEIRS`. `messages` names the field of a conversation."""
CONVERSATION_COLUMNS = ("image", "id", "system", "hd_num", "messages")
"""Roles that a conversation has."""

_EITHER = ("image", "images")
_MANY = ("image", "choices")
# A to D, option_a, option1, choice 2
_OPTION = re.compile(r"(?:option|choice|opt)[ _-]?([a-z]|\d{1,2})", re.IGNORECASE)
# Alpaca, M3IT
_BELOW_INSTRUCTION = ("input", "inputs")
_NUMBER_AT_END = re.compile(r"(.*?)[ _-]?(\d+)")


def check_columns(available: Iterable[str], source: Source, images: Sequence[str] = ()) -> dict[str, str]:
    """Map our columns to those of a table.

    Args:
        available: The table's columns.
        source: The user's settings. "" as a column's name means that there is no such column.
        images: Columns whose values are images.

    Returns:
        Our name -> theirs, or a path into it; several columns of images or options joined by commas; "" where the
        user says that there is none.

    Raises:
        UsageError: A column that is named is not there, question or answer are missing, or several fit.
    """
    found = list(available)
    columns, wrong = named_columns(found, source, COLUMNS)
    if {"answers", "multiple_choice_answer"} <= set(found) and not {"answer", "references"} & columns.keys():
        columns |= {"answer": "multiple_choice_answer", "references": "answers"}  # VQA v2
    taken = {first_name(one, found) for theirs in columns.values() for one in theirs.split(",")}
    open_names = [name for name in found if name not in taken]
    for ours, role in _ROLES.items():
        if ours in columns or (ours == "question" and source.question is not None):
            continue
        if (theirs := _fitting(ours, role, open_names, wrong)) and not (ours == "page" and theirs in images):
            columns[ours] = theirs
            open_names = [name for name in open_names if name not in (theirs, *theirs.split(","))]
    if "choices" not in columns and (options := _options_in(open_names)):
        columns["choices"] = ",".join(options)
        open_names = [name for name in open_names if name not in options]
    if "choices" in columns and "context" not in columns and "hint" in open_names:
        columns["context"] = "hint"
    below = [name for name in _BELOW_INSTRUCTION if name in open_names]
    if "input" not in columns and columns.get("question") == "instruction" and below:
        columns["input"] = below[0]
    if "question" not in columns and source.question is None and "input" in open_names:
        columns["question"] = "input"
    if "image" not in columns and source.image_pattern is None:
        taken_as_text = {first_name(theirs, found) for theirs in columns.values()}
        if theirs := image_columns([name for name in images if name not in taken_as_text], open_names, wrong):
            columns["image"] = theirs
    asked = columns.get("question", next((name for name in open_names if name.lower() == "question"), ""))
    if not columns.get("answer") and {"chosen", "rejected"} <= set(found):
        wrong.append(
            "`chosen` and `rejected` are preference data; to learn the chosen answers: --columns answer=chosen"
        )
    if source.answers and not columns.get("answer"):
        wrong.append("there is no column answer" + _offer("answer", open_names))
    if asked and source.question is not None:
        wrong.insert(0, f"there are both the column {asked} and a question for all rows")
    elif not columns.get("question") and source.question is None:
        wrong.append("there is neither a column question nor a question for all rows" + _offer("question", open_names))
    if wrong:
        raise UsageError(
            wrong[0],
            where=source.name,
            hint=_hint(source, asked),
            notes=[*wrong[1:], f"columns found: {', '.join(map(repr, found)) or 'none'}"],
        )
    return columns


def _hint(source: Source, asked: str) -> str:
    if asked and source.question is not None:
        return "leave out the question for all rows, or ignore the column with --columns question="
    names = "image=photo" + ",question=q" * (source.question is None) + ",answer=a" * source.answers
    hint = f"name the columns, e.g. --columns {names}"
    if source.question is not None:
        return hint
    # only `prepare` has the option; `predict` reads questions without answers
    asking = 'e.g. --question "What is the total?"' if source.answers else "as the argument of `ixtune predict`"
    return f"{hint}; or ask one question about all rows, {asking}"


def named_columns(found: Sequence[str], source: Source, known: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the columns that the user names, and what is wrong with them.

    Args:
        found: Names of columns or fields.
        source: The user's settings.
        known: Our names that are allowed.
    """
    columns: dict[str, str] = {}
    wrong: list[str] = []
    for ours, theirs in source.columns:
        if ours not in known:
            near = difflib.get_close_matches(ours, known, n=1)
            wrong.append(f"--columns {ours}={theirs}: known names are {', '.join(known)}" + _did_you_mean(near))
            continue
        if ours in columns:
            wrong.append(f"--columns names {ours} twice")
            continue
        names = [theirs] if theirs in found or ours not in _MANY else theirs.split(",")
        for name in names if theirs else ():
            if first_name(name, found) not in found:
                near = difflib.get_close_matches(name, found, n=1, cutoff=0.5)
                wrong.append(f"--columns {ours}={theirs}: there is no column {name!r}" + _did_you_mean(near))
        columns[ours] = theirs
    return columns, wrong


def image_columns(candidates: Sequence[str], found: Sequence[str], wrong: list[str]) -> str:
    """Return the columns to take for the images: the only one there is, or a numbered series; "" if there is none.

    Args:
        candidates: Columns whose values are images.
        found: All columns without another role: some columns of a series may be empty at first.
        wrong: Receives the question to ask if several fit.
    """
    numbered = [match for name in candidates if (match := _NUMBER_AT_END.fullmatch(name))]
    if candidates and len(numbered) == len(candidates) and len({match[1] for match in numbered}) == 1:
        alike = [match for name in found if (match := _NUMBER_AT_END.fullmatch(name)) and match[1] == numbered[0][1]]
        return ",".join(match.string for match in sorted(alike, key=lambda match: int(match[2])))
    if len(candidates) < 2:
        return candidates[0] if candidates else ""
    wrong.append(
        f"several columns hold images: {listed(candidates)}; name those to use: "
        f"--columns image={','.join(candidates)}, or --columns image={candidates[0]}"
    )
    return ""


def describe_columns(columns: Mapping[str, str], available: Iterable[str], source: Source) -> str:
    """Describe the column mapping in one line."""
    parts = [ours if ours == theirs else f"{ours} from {theirs}" for ours, theirs in columns.items() if theirs]
    if source.question is not None:
        parts.append("the same question for all")
    if source.image_pattern is not None:
        parts.append(f"image at {source.image_pattern}")
    if columns.get("image") or source.image_pattern is not None:
        parts.append(f"images in front of the question unless it contains {IMAGE}")
    found = list(available)
    used = {first_name(one, found) for theirs in columns.values() for one in (theirs, *theirs.split(","))}
    if ignored := [name for name in found if name not in used]:
        parts.append(f"not used: {listed(ignored)}")
    return ", ".join(parts)


def _fitting(ours: str, role: _Role, found: Sequence[str], wrong: list[str]) -> str:
    """Return the column of a role, "" if there is none or several."""
    lower = {name.lower(): name for name in reversed(found)}
    exact = [lower[name] for name in role.exact if name in lower]
    others = [lower[name] for name in role.others if name in lower]
    fitting = exact or others
    if ours == "image" and set(fitting) == set(_EITHER):
        return ",".join(_EITHER)  # records have one or the other
    if len(fitting) > 1:
        wrong.append(f"{ours} may be any of {listed(fitting)}: --columns {ours}={fitting[0]}?")
    return fitting[0] if len(fitting) == 1 else ""


def _options_in(found: Sequence[str]) -> list[str]:
    """Return the columns with one option each: A, B, C, D; option_a, ...; none if there are fewer than two."""
    for alphabet in ("ABCDEFGHIJ", "abcdefghij"):
        letters = [name for name in found if len(name) == 1 and name in alphabet]
        if "".join(letters) == alphabet[: len(letters)] and len(letters) > 1:
            return letters
    named = [name for name in found if _OPTION.fullmatch(name)]
    return named if len(named) > 1 else []


def _offer(ours: str, found: Sequence[str]) -> str:
    """Return the question to ask about a column that may be meant."""
    lower = {name.lower(): name for name in reversed(found)}
    role = _ROLES[ours]
    near = [name for known in role.exact for name in difflib.get_close_matches(known, lower, n=1, cutoff=0.7)]
    return f": --columns {ours}={lower[near[0]]}?" if near else ""


def _did_you_mean(near: Sequence[str]) -> str:
    return f"; did you mean {near[0]!r}?" if near else ""
