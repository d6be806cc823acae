"""Fixtures of the tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from records import write_image
from small_tokenizer import train


@pytest.fixture(scope="session")
def tokenizer_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small tokenizer.model, which is all that `ixtune prepare` asks of a base."""
    return train(tmp_path_factory.mktemp("base")).parent


@pytest.fixture
def image_root(tmp_path: Path) -> Path:
    """A folder with one image, a.png."""
    return write_image(tmp_path / "data" / "a.png").parent
