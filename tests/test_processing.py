"""Test that the tokenizer for transformers gives the same ids as ours."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ixtune.base import resolve
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.processing import IXC2Tokenizer

FILE = resolve("nano") / "tokenizer.model"
OURS, THEIRS = Tokenizer(FILE), IXC2Tokenizer(str(FILE))


@given(st.text(alphabet="abc 12.8\n-:°é你", max_size=30))
def test_plain_text_has_the_same_ids_in_both_tokenizers(text: str) -> None:
    assert THEIRS(text, add_special_tokens=False)["input_ids"] == OURS.encode(text)


def test_ids_are_decoded_to_text() -> None:
    ids = OURS.encode("Tmax on Mar 5?")
    assert THEIRS.decode(ids) == OURS.decode(ids) == "Tmax on Mar 5?"


def test_the_special_ids_match_the_release() -> None:
    assert (THEIRS.unk_token_id, THEIRS.bos_token_id, THEIRS.eos_token_id, THEIRS.pad_token_id) == (0, 1, 2, 2)
    assert THEIRS.vocab_size == OURS.vocab_size == len(THEIRS.get_vocab())


def test_the_vocabulary_can_be_saved_and_loaded(tmp_path: Path) -> None:
    THEIRS.save_pretrained(tmp_path)
    assert IXC2Tokenizer.from_pretrained(tmp_path)("a 1", add_special_tokens=False)["input_ids"] == OURS.encode("a 1")


@pytest.mark.parametrize("text", ["[UNUSED_TOKEN_145]", "user\n[UNUSED_TOKEN_146]"])
def test_turn_tokens_are_recognized(text: str) -> None:
    assert THEIRS(text, add_special_tokens=False)["input_ids"] == OURS.encode(text)
