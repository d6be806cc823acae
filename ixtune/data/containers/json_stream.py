"""Read JSON in blocks: the elements of one list, or the fields of one object, one in memory at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ixtune.data.rejects import Reason
from ixtune.data.sources import entry as limits
from ixtune.data.sources.entry import Fault
from ixtune.errors import IxtuneError

_BLOCK = 1 << 20
# of 1e+5 cut before the 5, only the 1 is a value; this is the longest remainder of a number that continues
_CUT_NUMBER_CHARACTERS = 3
_SPACES = re.compile(r"[ \t\r\n]*+")
# the surrogates for single bytes that are not UTF-8, see "surrogateescape"
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_INSIDE = re.compile(r'["\[\]{}]')
_OUTSIDE = re.compile(r'["\[\]{},]')
_END_OF_STRING = re.compile(r'[^"\\]*+(?:\\.[^"\\]*+)*+(")?', re.DOTALL)


class ListReader:
    """Reader of the elements of one JSON list; holds a block of text and never less than one element."""

    def __init__(self, file: IO[str], source: Path) -> None:
        self.file, self.source = file, source
        self.text, self.at = "", 0
        self.line, self.column = 1, 1
        self.decoder = json.JSONDecoder(object_pairs_hook=unique_names)
        self.not_utf8 = False

    def elements(self) -> Iterator[tuple[int, Any, Fault | None]]:
        """Yield line, value and fault of each element; nothing may follow the closing bracket."""
        yield from self._elements()
        if self._peek():
            raise self._broken("there is more text after the closing bracket of the list")

    def elements_of(self, field: str) -> Iterator[tuple[int, Any, Fault | None]]:
        """Yield line, value and fault of each element of the list in a field of an object; other fields are skipped."""
        self._expect("{", f"the opening brace of an object with the field `{field}`")
        seen = False
        while self._peek() != "}":
            name = self._name()
            self._expect(":", "a colon")
            self._peek()
            if name == field:
                seen = True
                yield from self._elements()
            else:
                self._element()
            if self._peek() != "}":
                self._expect(",", "a comma or the closing brace")
        self._expect("}", "")
        if not seen:
            raise self._broken(f"the object has no field `{field}`")

    def firsts(self) -> dict[str, Any]:
        """Read an object: for each field the first element of its list, or None if it holds no list or an empty one.

        Raises:
            IxtuneError: It is not an object, or its JSON is broken.
        """
        self._expect("{", "the opening brace of an object")
        found: dict[str, Any] = {}
        while self._peek() != "}":
            name = self._name()
            self._expect(":", "a colon")
            found[str(name)] = self._first() if self._peek() == "[" else None
            self._skip()
            if self._peek() != "}":
                self._expect(",", "a comma or the closing brace")
        self._expect("}", "")
        if self._peek():
            raise self._broken("there is more text after the closing brace of the object")
        return found

    def _first(self) -> Any:
        """Return the first element of the list that begins here, without advancing; None if it is not in this block."""
        while True:
            try:
                spaces = _SPACES.match(self.text, self.at + 1)
                assert spaces is not None  # it also matches nothing
                return self.decoder.raw_decode(self.text, spaces.end())[0]
            except (ValueError, RecursionError):
                if len(self.text) - self.at > _BLOCK or not self._more():
                    return None

    def _skip(self) -> None:
        """Skip a value without decoding it."""
        scan = _Scan()
        while True:
            self._advance(scan.until_end(self.text, self.at))
            if scan.ended or not self._more():
                return

    def _name(self) -> Any:
        """Read the name of a field; a string ends with its quote, wherever the block ends."""
        if self._peek() != '"':
            raise self._broken("expected the name of a field")
        while True:
            try:
                name, end = self.decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if len(self.text) - self.at > limits.MAX_ENTRY_BYTES or not self._more():
                    raise self._broken(f"broken JSON: {error.msg}") from error
            else:
                self._advance(end)
                return name

    def _elements(self) -> Iterator[tuple[int, Any, Fault | None]]:
        self._expect("[", "the opening bracket of a list")
        if self._peek() == "]":
            self._expect("]", "")
        else:
            while True:
                self._peek()
                yield self.line, *self._element()
                if self._peek() == "]":
                    self._expect("]", "")
                    break
                self._expect(",", "a comma or the closing bracket")

    def _peek(self) -> str:
        """Return the next character that is no space, or "" at the end of the file."""
        while True:
            spaces = _SPACES.match(self.text, self.at)
            assert spaces is not None  # it also matches nothing
            self._advance(spaces.end())
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more():
                return ""

    def _element(self) -> tuple[Any, Fault | None]:
        try:
            value, end = self.decoder.raw_decode(self.text, self.at)
            if len(self.text) - end >= _CUT_NUMBER_CHARACTERS:
                return self._checked(value, end)
        except (ValueError, RecursionError):
            pass  # perhaps only the block ends here: the value is known once its end is
        scan = _Scan()
        last = self._read_to_end(scan)
        if last - self.at > limits.MAX_ENTRY_BYTES:
            return None, self._passed_by(scan, last)
        try:
            value, end = self.decoder.raw_decode(self.text, self.at)
        except json.JSONDecodeError as error:
            self._advance(error.pos)
            raise self._broken(f"broken JSON: {error.msg}") from error
        except (ValueError, RecursionError) as error:
            if not scan.ended:
                raise self._broken(f"broken JSON: {error}") from error
            self._advance(last)
            return None, fault_of_value(error)
        return self._checked(value, end)

    def _checked(self, value: Any, end: int) -> tuple[Any, Fault | None]:
        """Advance past an element that was read; return it, or a fault if it is too large or not UTF-8."""
        fault = None
        if end - self.at > limits.MAX_ENTRY_BYTES:
            value, fault = None, fault_of_size(self._size_until(end))
        elif self.not_utf8 and (found := _NOT_UTF8.search(self.text, self.at, end)):
            value, fault = None, fault_of_bytes(ord(found.group()) - 0xDC00)
        self._advance(end)
        return value, fault

    def _read_to_end(self, scan: _Scan) -> int:
        """Return where the element or the file ends, or where the element is too large; reads on as far as it must."""
        at = self.at
        while True:
            at = scan.until_end(self.text, at)
            if scan.ended or at - self.at > limits.MAX_ENTRY_BYTES:
                return at
            at -= self.at  # reading further drops the text before the element
            if not self._more():
                return len(self.text)

    def _passed_by(self, scan: _Scan, at: int) -> Fault:
        """Skip the rest of an element that is too large, keeping one block in memory at a time."""
        size, line, column = self._size_until(at), self.line, self.column
        self._advance(at)
        while not scan.ended and self._more():
            at = scan.until_end(self.text, self.at)
            size += self._size_until(at)
            self._advance(at)
        if not scan.ended:
            self.line, self.column = line, column
            raise self._broken("the file ends within the record that begins here")
        return fault_of_size(size)

    def _size_until(self, at: int) -> int:
        return len(self.text[self.at : at].encode("utf-8", "surrogateescape"))

    def _expect(self, character: str, wanted: str) -> None:
        found = self._peek()
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
        """Read another block; return False at the end of the file."""
        block = self.file.read(_BLOCK)
        if not block:
            return False
        self.text, self.at = self.text[self.at :] + block, 0
        if not block.isascii():
            escaped = _NOT_UTF8.search(block) is not None
            self.not_utf8 = escaped or (self.not_utf8 and len(self.text) > len(block))
        return True

    def _broken(self, what: str) -> IxtuneError:
        return IxtuneError(
            what,
            where=f"{self.source}, line {self.line}, column {self.column}",
            hint="fix the file there, or write it again with a JSON library",
        )


class _Scan:
    """Scanner that finds the end of a JSON value by its strings and brackets alone, over any number of blocks."""

    def __init__(self) -> None:
        self.depth = 0
        self.in_string = self.escaped = self.ended = False

    def until_end(self, text: str, at: int) -> int:
        """Scan `text` from `at` to the end of the value or of the text; `ended` shows which."""
        while at < len(text):
            if self.in_string:
                at = self._string(text, at)
                continue
            found = (_INSIDE if self.depth else _OUTSIDE).search(text, at)
            if found is None:
                return len(text)
            mark = found.group()
            at = found.end()
            if mark == '"':
                self.in_string = True
            elif mark in "[{":
                self.depth += 1
            elif self.depth == 0:  # a comma or a bracket of what surrounds the value
                self.ended = True
                return at - 1
            else:
                self.depth -= 1
                if self.depth == 0:
                    self.ended = True
                    return at
        return at

    def _string(self, text: str, at: int) -> int:
        if self.escaped:
            self.escaped = False
            at += 1
        found = _END_OF_STRING.match(text, at)
        assert found is not None  # it also matches nothing
        self.in_string = found.group(1) is None
        # a backslash that ends the text is not part of the match
        self.escaped = self.in_string and found.end() < len(text)
        return len(text) if self.in_string else found.end()


def fault_of_size(size: int) -> Fault:
    """Return the fault of a record with too many bytes."""
    return Fault(
        Reason.RECORD_TOO_LARGE,
        f"the record has {size:,} bytes, more than {limits.MAX_ENTRY_BYTES:,}",
        "write images as files and give their paths, or split the record",
    )


def fault_of_bytes(byte: int, where: str = "") -> Fault:
    """Return the fault of a byte that is not UTF-8."""
    return Fault(Reason.NOT_UTF8, f"the byte 0x{byte:02X}{where} is not UTF-8", "save the source as UTF-8")


class RepeatedNameError(ValueError):
    """An object has two values of one name, of which Python's reader would drop the first."""


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the fields of a JSON object.

    Raises:
        RepeatedNameError: Two of them have the same name.
    """
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        again = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise RepeatedNameError(f"the field `{again}` is in one object twice")
    return fields


def fault_of_value(error: Exception) -> Fault:
    """Return the fault of valid JSON that cannot be held: a number of thousands of digits, nesting, a repeated name."""
    if isinstance(error, RepeatedNameError):
        return Fault(Reason.NOT_JSON, str(error), "rename one of them, or put all values into one list")
    found = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
    return Fault(Reason.NOT_JSON, found, "remove the record")
