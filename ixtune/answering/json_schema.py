"""Constrain answers to a JSON schema: read, check and compile the schema, and follow it token by token with llguidance.

Imports no tensor library, so that an invalid schema is reported before a model is loaded.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ixtune.data.text.tokenizer import Tokenizer
from ixtune.errors import IxtuneError, UsageError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

ANY_OBJECT = '{"type":"object"}'
"""Schema of any JSON object."""
# A space, or a line break with indentation. Unbounded white space lets a small model write spaces until it is cut off.
_WHITE_SPACE = r" |\r?\n[ \t]{0,40}"
_CLOSING_LIMIT = 1000  # tokens; an ending has as many as the required keys and fixed texts of the schema
_SUBSCHEMAS_SEARCHED = 1000  # to locate an error
_RECURSION = "recursion limit exceeded"  # llguidance's wording
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
# Outside strings, in this order: close what is open, continue with what is required, with the emptiest value.
_OUTSIDE = b'}],:n"0123456789ft[{-.e'
_INSIDE = b'"' + bytes(code for code in range(0x20, 0x7F) if code not in b'"\\')


def read_schema(path: Path) -> str:
    """Return the schema in a file as compact JSON, checked as in `checked_schema`.

    Raises:
        UsageError: There is no such file, it is not JSON, or answers cannot be constrained to its schema.
        IxtuneError: llguidance is not installed.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError("there is no such file", where=str(path), hint="check the path of the JSON schema") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the JSON schema cannot be read: {error}", where=str(path), hint="pass a JSON file in UTF-8"
        ) from error
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"this is not JSON: {error.msg}",
            where=f"{path}, line {error.lineno}, column {error.colno}",
            hint="correct it there; the file holds one JSON schema",
        ) from error
    except RecursionError:
        raise _too_deep(str(path)) from None
    return checked_schema(content, str(path))


def checked_schema(content: Any, where: str) -> str:
    """Return a schema as compact JSON, after checking that answers can be constrained to it.

    Args:
        content: The schema, as parsed from JSON.
        where: Its file or field, for messages.

    Raises:
        UsageError: It is not a schema, is unsatisfiable, or has a keyword that llguidance does not support.
        IxtuneError: llguidance is not installed.
    """
    if not isinstance(content, dict | bool):
        raise UsageError(
            f"a JSON schema is an object, not {json.dumps(content)[:40]}",
            where=where,
            hint='write for example {"type": "object", "properties": {"total": {"type": "number"}}}',
        )
    if message := _mistake(content):
        if _RECURSION in message:
            raise _too_deep(where)
        short = next(iter(message.splitlines()), "").strip()
        raise UsageError(
            f"answers cannot be constrained to this schema: {short}",
            where=f"{where}, at {_place(content, message)}",
            hint="correct the schema there, or remove the keyword if it is not supported",
        )
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


class JsonGrammar:
    """A schema compiled for the vocabulary of a base. Answers of several requests can follow it at the same time.

    Attributes:
        size: Number of pieces in the vocabulary.
    """

    def __init__(self, schema: str, tokenizer: Tokenizer) -> None:
        """Compile.

        Args:
            schema: From `read_schema` or `checked_schema`.
            tokenizer: The base's.

        Raises:
            UsageError: The schema cannot be compiled.
            IxtuneError: llguidance is not installed.
        """
        llguidance = _library()
        self.size = tokenizer.vocab_size
        self._stops = (tokenizer.eos_id, tokenizer.end_of_turn_id)
        self._vocabulary = _vocabulary(tokenizer)
        self._single = _single_bytes(tokenizer)
        self._start = llguidance.LLMatcher(self._vocabulary, _grammar(json.loads(schema)), log_level=0)
        if self._start.is_error():
            raise UsageError(
                f"answers cannot be constrained to this schema: {self._start.get_error()}",
                where="JSON schema",
                hint="simplify the schema",
            )

    def start(self) -> JsonState:
        """Return the state before the first token of an answer."""
        return JsonState(self._start.deep_copy(), self._stops)

    def fits(self, ids: Sequence[int]) -> bool:
        """Return whether a whole answer follows the schema, the order of its keys included."""
        matcher = self._start.deep_copy()
        return bool(matcher.try_consume_tokens(list(ids)) == len(ids) and matcher.is_accepting())

    def closing(self, ids: Sequence[int]) -> list[int] | None:
        """Return token ids that complete an answer cut off after `ids`; None if there are none.

        Each open string, list and object is ended as soon as the schema allows. Required keys that are missing get the
        emptiest value that the schema allows, such as null, "" or 0.
        """
        matcher = self._start.deep_copy()
        if not matcher.consume_tokens(list(ids)):
            return None
        made: list[int] = []
        used: Counter[int] = Counter()
        while not matcher.is_accepting():
            if len(made) == _CLOSING_LIMIT or matcher.is_stopped():
                return None
            mask = matcher.compute_bitmask()
            token = self._choose(mask, self._vocabulary.decode_bytes([*ids, *made]), used)
            if token is None or not matcher.consume_token(token):
                return None
            used[token] += 1
            made.append(token)
        return made

    def _choose(self, mask: bytes, before: bytes, used: Counter[int]) -> int | None:
        """Return the allowed token that probably ends the answer soonest, without a search."""
        inside = b'"' in _STRING.sub(b"", before)
        order = _INSIDE if inside else _OUTSIDE
        wanted = [token for code in order if (token := self._single.get(code)) is not None and _allows(mask, token)]
        if wanted and (not inside or wanted[0] == self._single.get(order[0])):
            return wanted[0]
        if wanted:
            # rotated, so that a pattern such as [a-z]+@[a-z]+ does not get the same letter forever
            return min(wanted, key=lambda token: used[token])
        others = (token for token in range(self.size) if _allows(mask, token))
        return min(others, key=lambda token: used[token], default=None)


class JsonState:
    """Progress of one answer through a grammar.

    Attributes:
        ended: Whether a stop token has ended the answer.
    """

    def __init__(self, matcher: LLMatcher, stops: Sequence[int]) -> None:
        self._matcher, self._stops = matcher, stops
        self.ended = False

    def allowed(self) -> bytes:
        """Return the tokens that may come next: one bit per piece, the lowest bit of a byte first."""
        return self._matcher.compute_bitmask()

    def accept(self, token: int) -> None:
        """Advance by a token; once a stop token has ended the answer, do nothing.

        Raises:
            ValueError: It was not allowed.
        """
        if self.ended:
            return
        self.ended = token in self._stops and self.complete
        if not self.ended and not self._matcher.consume_token(token):
            raise ValueError(f"token {token} is not allowed here: {self._matcher.get_error()}")

    @property
    def complete(self) -> bool:
        """Return whether the answer so far is a whole value of the schema."""
        return self._matcher.is_accepting()


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise IxtuneError(
            "JSON schemas need llguidance, which is not installed",
            hint='pip install "ixtune[json]"',
        ) from error
    return llguidance


def _grammar(content: Any) -> str:
    options = {"whitespace_pattern": _WHITE_SPACE}
    made: str = _library().LLMatcher.grammar_from_json_schema(json.dumps(content), defaults=options)
    return made


def _too_deep(where: str) -> UsageError:
    return UsageError("the JSON schema is nested too deeply", where=where, hint="use a flatter schema")


def _mistake(content: Any) -> str:
    """Return llguidance's error about a schema; empty if it has none."""
    try:
        wrong, messages = _library().LLMatcher.validate_grammar_with_warnings(_grammar(content))
    except RecursionError:
        return _RECURSION
    except ValueError as error:
        return str(error)
    return str(messages[0]) if wrong else ""


def _place(content: Any, message: str) -> str:
    """Return the innermost part of a schema with this error, as a path from the root `$`."""
    root = content if isinstance(content, dict) else {}
    definitions = {key: root[key] for key in ("$defs", "definitions") if key in root}
    found = "$"
    for number, (place, part) in enumerate(_parts(content, "$")):
        if number == _SUBSCHEMAS_SEARCHED:
            break
        if len(place) > len(found) and place.startswith(found) and _mistake({**definitions, **part}) == message:
            found = place
    return found


def _parts(value: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every object in a schema with its path, outer ones first."""
    waiting: list[tuple[str, Any]] = [(place, value)]
    while waiting:
        place, value = waiting.pop(0)
        if isinstance(value, dict):
            yield place, value
            waiting += [(f"{place}.{key}", inner) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{place}[{at}]", inner) for at, inner in enumerate(value)]


class _Pieces:
    """A vocabulary in the form that llguidance takes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id
        pieces = [tokenizer.piece_bytes(index) for index in range(tokenizer.vocab_size)]
        self.special_token_ids = [index for index, piece in enumerate(pieces) if piece is None]
        # llguidance never treats a piece that begins with 0xFF as text
        self.tokens = [
            b"\xff" + tokenizer.piece(index).encode() if piece is None else piece for index, piece in enumerate(pieces)
        ]
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


@lru_cache(maxsize=4)  # 1.2 s for the released vocabulary
def _vocabulary(tokenizer: Tokenizer) -> LLTokenizer:
    library = _library()
    stops = [tokenizer.eos_id, tokenizer.end_of_turn_id]
    made: LLTokenizer = library.LLTokenizer(library.TokenizerWrapper(_Pieces(tokenizer)), eos_token=stops)
    return made


@lru_cache(maxsize=4)
def _single_bytes(tokenizer: Tokenizer) -> dict[int, int]:
    """Return the ids of pieces of one byte, by that byte."""
    pieces = ((index, tokenizer.piece_bytes(index)) for index in reversed(range(tokenizer.vocab_size)))
    return {piece[0]: index for index, piece in pieces if piece is not None and len(piece) == 1}


def _allows(mask: bytes, token: int) -> bool:
    return bool(mask[token >> 3] >> (token & 7) & 1)
