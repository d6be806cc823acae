"""Test that pieces of text add up to the whole answer, with whole characters and stop texts across pieces."""

from __future__ import annotations

import random

import pytest

from ixtune.answering.text_stream import TextStream
from ixtune.base import resolve_tokenizer
from ixtune.data.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_base(resolve_tokenizer("nano"))


def pieces(tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...] = ()) -> list[str]:
    stream = TextStream(tokenizer, stop)
    found = []
    for token in ids:
        found.append(stream.add(token))
        if stream.stopped:
            return found
    return [*found, stream.end()]


def test_random_tokens_add_up_to_the_decoded_answer(tokenizer: Tokenizer) -> None:
    some = random.Random(0)
    for _ in range(300):
        ids = [some.randrange(3, tokenizer.vocab_size) for _ in range(some.randrange(1, 12))]
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids).strip()


@pytest.mark.parametrize("text", ["Größe 5 €", "你好, 世界 👋", "  a  b \n\n c  "])
def test_multi_byte_characters_are_never_split(tokenizer: Tokenizer, text: str) -> None:
    found = pieces(tokenizer, tokenizer.encode(text))
    assert "".join(found) == text.strip()
    assert not any("�" in piece for piece in found)


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ("two",), "one"),
        ("one two three", ("three", "two t"), "one"),
        ("one\n\ntwo", ("\n\n",), "one"),
        ("\n\none", ("\n\n",), ""),
        ("aaab", ("aab",), "a"),
        ("one tw", ("two",), "one tw"),
        ("你好世界", ("世",), "你好"),
    ],
)
def test_a_stop_string_across_pieces_ends_the_answer(
    tokenizer: Tokenizer, text: str, stop: tuple[str, ...], expected: str
) -> None:
    ids = [token for letter in text for token in tokenizer.encode(letter)]
    assert "".join(pieces(tokenizer, ids, stop)) == expected
