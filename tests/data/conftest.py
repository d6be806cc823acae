"""Provide fixtures for the tests of the data layer."""

from __future__ import annotations

from pathlib import Path

import pytest
from records import write_image
from small_tokenizer import train

from ixtune.data.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a small tokenizer.model, all that `prepare` needs from a base."""
    return train(tmp_path_factory.mktemp("base")).parent


@pytest.fixture(scope="session")
def tokenizer(tokenizer_base: Path) -> Tokenizer:
    return Tokenizer.from_base(tokenizer_base)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return an image root with a landscape, a portrait and a square image."""
    for name, width, height in (("a.png", 60, 40), ("portrait.png", 30, 70), ("deep/square.png", 20, 20)):
        write_image(tmp_path / "data" / name, width, height)
    return tmp_path / "data"
