from __future__ import annotations

from pathlib import Path

import pytest
import small_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from ixtune.data.text.tokenizer import Tokenizer
from ixtune.errors import IxtuneError
from ixtune.files import sha256_file


def refusal(path: Path) -> str:
    with pytest.raises(IxtuneError) as caught:
        Tokenizer(path)
    assert caught.value.hint
    return str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path):
    assert str(tmp_path / "tokenizer.model") in refusal(tmp_path / "tokenizer.model")


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", bytes(99)])
def test_a_file_that_is_not_a_sentencepiece_model_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    assert str(path) in refusal(path)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"user_defined_symbols": ["[UNUSED_TOKEN_146]"]}, "lacks the piece [UNUSED_TOKEN_145]"),
        ({"user_defined_symbols": ["[UNUSED_TOKEN_145]"]}, "lacks the piece [UNUSED_TOKEN_146]"),
        (
            {"user_defined_symbols": [], "control_symbols": ["[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_146]"]},
            "not recognized in text",
        ),
        ({"add_dummy_prefix": True}, "changes spaces"),
        ({"remove_extra_whitespaces": True}, "changes spaces"),
        ({"unk_id": 2, "bos_id": 0, "eos_id": 1}, "2, 0, 1"),
    ],
)
def test_a_vocabulary_that_does_not_fit_the_template_is_refused(
    tmp_path: Path, changes: dict[str, object], complaint: str
):
    assert complaint in refusal(small_tokenizer.train(tmp_path, **changes))


def test_turn_tokens_are_looked_up_and_recognized(tokenizer: Tokenizer):
    ids = tokenizer.encode("[UNUSED_TOKEN_146]user[UNUSED_TOKEN_145]")
    assert (ids[0], ids[-1]) == (tokenizer.start_of_turn_id, tokenizer.end_of_turn_id)
    assert tokenizer.piece(ids[0]) == "[UNUSED_TOKEN_146]"
    assert tokenizer.piece_id("[UNUSED_TOKEN_145]") == ids[-1]
    assert tokenizer.piece_id("no such piece") == tokenizer.unk_id


def test_control_tokens_in_text_are_parsed_as_in_the_reference(tokenizer: Tokenizer):
    assert tokenizer.encode("<unk><s></s>") == [0, 1, 2]
    assert tokenizer.encode("a</s>b") == [*tokenizer.encode("a"), 2, *tokenizer.encode("b")]


@given(text=st.text().filter(lambda text: not any(piece in text for piece in ("<unk>", "<s>", "</s>"))))
def test_text_survives_encoding_and_decoding(tokenizer: Tokenizer, text: str):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text.replace("▁", " ")  # sentencepiece's own sign for a space
    assert not {0, 1, 2} & set(ids)


def test_a_lone_surrogate_is_a_unicode_error(tokenizer: Tokenizer):
    with pytest.raises(UnicodeEncodeError):
        tokenizer.encode("a\ud83d")


def test_a_tokenizer_is_identified_by_the_hash_of_its_file(tokenizer: Tokenizer, tokenizer_base: Path):
    assert tokenizer.sha256 == sha256_file(tokenizer_base / "tokenizer.model")
    assert tokenizer.vocab_size > 256
