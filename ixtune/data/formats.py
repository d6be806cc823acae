"""Source files -> records. Read so far: InternLM-XComposer's own JSON, as one list or as JSON Lines.

    [{"id": "7", "image": ["a.png"], "conversations": [{"from": "user", "value": "<ImageHere>What is it?"},
                                                       {"from": "assistant", "value": "A receipt."}]}, ...]

A file is never held whole in memory. What is wrong with one record becomes a `Reject`; what makes the rest of
the file unreadable is an error.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ixtune.data.record import Record, Role, Turn
from ixtune.data.rejects import Reason, RecordError, Reject
from ixtune.errors import IxtuneError, UsageError

_BLOCK_CHARACTERS = 1 << 20
# of 1e+5 cut before the 5, only the 1 is a value; so much may be left over of a number that goes on
_CUT_NUMBER_CHARACTERS = 3
_SPACE = " \t\r\n"
_SHOWN_CHARACTERS = 60

# The reference takes every name but the user's as the assistant's (MODEL.md 3.2), a misspelt "usr" included.
# Here an unknown name is refused.
_ROLES: dict[str, Role] = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "ai": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
}


@dataclass(frozen=True, slots=True)
class _Entry:
    """One JSON value of a source, or what kept it from being read."""

    line: int
    value: Any
    error: str | None = None


def read(source: Path, read_bytes: Callable[[int], None] | None = None) -> Iterator[Record | Reject]:
    """The records of a source in its order, rejects among them; one item per entry of the file.

    Args:
        source: A `.json` file with a list of records, or a file with one record a line.
        read_bytes: Told now and then how many bytes of the file have been read in all.

    Raises:
        UsageError: There is no such file.
        IxtuneError: The file is not UTF-8, no list or lines of records, or broken; with line and column.
    """
    if not source.is_file():
        raise UsageError(
            "there is no such file" if not source.exists() else "this is not a file",
            where=str(source),
            mend="give the JSON file with the records",
        )
    try:
        with open(source, "rb") as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="\n") as file:
            for number, entry in enumerate(_entries(file, source), start=1):
                yield _record(number, entry, str(source))
                if read_bytes is not None:
                    read_bytes(raw.tell())
    except UnicodeDecodeError as error:
        raise IxtuneError(
            "the file is not UTF-8",
            where=f"{source}, line {_undecodable_line(source)}",
            mend="save it as UTF-8",
        ) from error


def _entries(file: IO[str], source: Path) -> Iterator[_Entry]:
    """The JSON values of a list or of JSON Lines, with the lines on which they begin."""
    reader = _ListReader(file, source)
    first = reader.peek()
    if first == "[":
        yield from reader.elements()
    elif first == "{":
        file.seek(0)
        yield from _lines(file)
    else:
        raise IxtuneError(
            "the file is empty" if not first else f"the file begins with {first!r}",
            where=f"{source}, line {reader.line}, column {reader.column}",
            mend="give a JSON list of records, [{...}, ...], or one record {...} a line",
        )


def _lines(file: IO[str]) -> Iterator[_Entry]:
    for number, line in enumerate(file, start=1):
        if not line.strip(_SPACE):
            continue
        try:
            yield _Entry(number, json.loads(line))
        except json.JSONDecodeError as error:
            yield _Entry(number, None, f"{error.msg} at column {error.colno}")
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, or nesting as deep
            yield _Entry(number, None, str(error))


class _ListReader:
    """Reads the elements of one JSON list, holding a block of text and never less than one element."""

    def __init__(self, file: IO[str], source: Path) -> None:
        self.file, self.source = file, source
        self.text, self.at = "", 0
        self.line, self.column = 1, 1
        self.decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is no space, or "" at the end of the file."""
        while True:
            start = self.at
            while start < len(self.text) and self.text[start] in _SPACE:
                start += 1
            self._advance(start)
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more():
                return ""

    def elements(self) -> Iterator[_Entry]:
        """The elements, after which nothing may follow the closing bracket."""
        self._expect("[", "")
        if self.peek() == "]":
            self._expect("]", "")
        else:
            while True:
                self.peek()
                line = self.line
                yield _Entry(line, self._value())
                if self.peek() == "]":
                    self._expect("]", "")
                    break
                self._expect(",", "a comma or the closing bracket")
        if self.peek():
            raise self._broken("there is more text after the closing bracket of the list")

    def _value(self) -> Any:
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                # perhaps only the block ends here; a broken record costs reading the rest of the file
                if self._more():
                    continue
                self._advance(error.pos)
                raise self._broken(f"broken JSON: {error.msg}") from error
            except (ValueError, RecursionError) as error:
                raise self._broken(f"broken JSON: {error}") from error
            if len(self.text) - end < _CUT_NUMBER_CHARACTERS and self._more():
                continue
            self._advance(end)
            return value

    def _expect(self, character: str, wanted: str) -> None:
        found = self.peek()
        if found != character:
            raise self._broken(f"expected {wanted}, found {f'{found!r}' if found else 'the end of the file'}")
        self._advance(self.at + 1)

    def _advance(self, to: int) -> None:
        passed = self.text[self.at : to]
        if newlines := passed.count("\n"):
            self.line += newlines
            self.column = len(passed) - passed.rfind("\n")
        else:
            self.column += len(passed)
        self.at = to

    def _more(self) -> bool:
        """Read on, twice as much each time a value does not end; False at the end of the file."""
        block = self.file.read(max(_BLOCK_CHARACTERS, len(self.text) - self.at))
        if not block:
            return False
        self.text, self.at = self.text[self.at :] + block, 0
        return True

    def _broken(self, what: str) -> IxtuneError:
        return IxtuneError(
            what,
            where=f"{self.source}, line {self.line}, column {self.column}",
            mend="mend the file there, or write it again with a JSON library",
        )


def _record(number: int, entry: _Entry, source: str) -> Record | Reject:
    name: str | None = None
    try:
        if entry.error is not None:
            raise RecordError(Reason.NOT_JSON, entry.error, mend="write one JSON object a line")
        value = entry.value
        if not isinstance(value, dict):
            raise RecordError(
                Reason.NOT_A_RECORD,
                f"the entry is {_shown(value)}",
                mend='write {"id": ..., "image": [...], "conversations": [...]}',
            )
        name = _id(value.get("id"))
        record = Record(name, _pictures(value.get("image")), _turns(value.get("conversations")), source, entry.line)
        _require_characters(record)
    except RecordError as error:
        return Reject(source, number, entry.line, name, error.reason, error.what, error.mend)
    return record


def _id(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value:
        return value
    found = "there is no `id`" if value is None else f"`id` is {_shown(value)}"
    raise RecordError(Reason.BAD_ID, found, mend="give every record an id of its own, a text or a whole number")


def _pictures(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise RecordError(
            Reason.BAD_IMAGE_FIELD,
            f"`image` is {_shown(value)}",
            mend='write a list of paths, such as ["a.png"]',
        )
    return tuple(paths)


def _turns(value: Any) -> tuple[Turn, ...]:
    mend = 'write a list such as [{"from": "user", "value": "..."}, {"from": "assistant", "value": "..."}]'
    if not isinstance(value, list) or not value:
        found = "there is no `conversations`" if value is None else f"`conversations` is {_shown(value)}"
        raise RecordError(Reason.BAD_CONVERSATIONS, found, mend=mend)
    turns = []
    for number, turn in enumerate(value, start=1):
        if not isinstance(turn, dict):
            raise RecordError(Reason.BAD_CONVERSATIONS, f"turn {number} is {_shown(turn)}", mend=mend)
        for key in ("from", "value"):
            if not isinstance(turn.get(key), str):
                found = f"turn {number} has no `{key}`" if key not in turn else f"its `{key}` is {_shown(turn[key])}"
                raise RecordError(Reason.BAD_CONVERSATIONS, found, mend=mend)
        role = _ROLES.get(turn["from"].lower())
        if role is None:
            raise RecordError(
                Reason.UNKNOWN_ROLE,
                f"turn {number} is from {_shown(turn['from'])}",
                mend=f"write one of {', '.join(name for name in _ROLES if name != 'system')}",
            )
        turns.append(Turn(role, turn["value"]))
    return tuple(turns)


def _require_characters(record: Record) -> None:
    """JSON can spell half a surrogate pair; no file name, tokenizer or table can hold one."""
    texts = (("`id`", record.id), *(("`image`", path) for path in record.pictures))
    for where, text in (*texts, *((f"turn {n}", turn.text) for n, turn in enumerate(record.turns, start=1))):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RecordError(
                Reason.INVALID_UNICODE,
                f"{where} holds half of a surrogate pair at character {error.start + 1}",
                mend="write the source again in UTF-8, without cutting emoji in two",
            ) from error


def _shown(value: Any) -> str:
    """A JSON value in a few words, as it stands in the source."""
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def _undecodable_line(source: Path) -> int:
    with open(source, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return number  # a character cut in two by the end of a line is found above; this is the last line
