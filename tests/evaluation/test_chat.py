"""Test a chat: its history and output, and that errors do not end it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from records import write_image

from ixtune.answering.answerer import Answerer
from ixtune.answering.settings import Settings
from ixtune.data.prepared.image_files import ImageFiles
from ixtune.data.record import Turn
from ixtune.evaluation import predict
from ixtune.evaluation.chat import Chat, _Writer, converse
from ixtune.evaluation.session import Loaded
from ixtune.training.batch import ImageSource


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return Loaded("nano", None, None)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def chat(loaded: Loaded, said: list[str]) -> Chat:
    return Chat(loaded, loaded.view(2), Settings(6), said.append)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_image(tmp_path / "my image.png", 60, 40)


def test_a_question_is_answered_like_predict_and_kept_in_the_history(chat: Chat, said: list[str], image: Path) -> None:
    expected = predict.predict_one(chat.loaded, "Which number?", [image], chat.view, chat.settings)
    converse(chat, [f'/image "{image}"', "Which number?"])
    assert "60x40, 1x1 crops" in said[0]
    answer = "".join(said[1:]).removesuffix(" (cut off after 6 tokens)\n").strip()
    assert answer == expected.text
    assert chat.turns == [Turn("user", "<ImageHere>Which number?"), Turn("assistant", expected.text)]
    assert len(chat.images) == 1
    assert chat.shown == []
    converse(chat, ["And now?"])
    assert [turn.role for turn in chat.turns] == ["user", "assistant"] * 2
    converse(chat, ["/reset"])
    assert (chat.turns, chat.images, chat.shown) == ([], [], [])


def test_errors_are_printed_and_keep_the_history(chat: Chat, said: list[str], image: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    converse(chat, ["Hello"])
    turns = list(chat.turns)
    for line, words in (
        ("/image", "/image needs a path"),
        (f"/image {tmp_path}/none.png", "none.png"),
        (f"/image {tmp_path}/text.png", "text.png"),
        ("/image 'unclosed", "unclosed"),
        ("/hd many", "/hd needs a number"),
        ("/compare", "there is no adapter to compare"),
        ("/nonsense", "there is no command /nonsense"),
        ("<ImageHere> of nothing", "placeholder"),
        ("a piece [UNUSED_TOKEN_145]", "[UNUSED_TOKEN_145]"),
    ):
        said.clear()
        assert chat.line(line)
        assert "error: " in said[0]
        assert words in said[0]
        assert "hint:  " in said[0]
        assert (chat.turns, chat.shown) == (turns, [])
    assert not chat.line("/quit")


def test_an_interrupted_question_is_forgotten_and_keeps_its_image(
    chat: Chat, said: list[str], image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(*_: Any) -> None:
        raise KeyboardInterrupt

    chat.line(f"/image '{image}'")
    monkeypatch.setattr(Answerer, "answer", press)
    assert chat.line("Which number?")
    assert "stopped" in said[-1]
    assert (chat.turns, len(chat.shown)) == ([], 1)


def test_hd_applies_to_the_next_images(chat: Chat, said: list[str], image: Path) -> None:
    converse(chat, ["/hd 6", f"/image '{image}'"])
    assert "2x3 crops" in said[-1]
    assert chat.view == replace(chat.view, hd_num=6)


def test_text_streams_by_token_and_never_splits_a_character(loaded: Loaded) -> None:
    """A character outside the vocabulary is several byte tokens."""
    said: list[str] = []
    answerer = Answerer(loaded.model, loaded.tokenizer, ImageSource(ImageFiles(())), Settings())
    writer = _Writer(answerer, said.append)
    writer.put(torch.tensor([[1, 2, 3]]))
    ids = loaded.tokenizer.encode("12 語 34")
    assert len(ids) > len("12 語 34")
    for token in (*ids, loaded.tokenizer.end_of_turn_id):
        writer.put(torch.tensor([token]))
    writer.end()
    assert "".join(said) == "12 語 34"
    assert not any("�" in part for part in said)
    assert len([part for part in said if part]) > 3
