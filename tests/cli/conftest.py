"""Provide fixtures for the tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from records import write_image
from small_tokenizer import train


@pytest.fixture(scope="session")
def tokenizer_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a small tokenizer.model, all that `ixtune prepare` needs from a base."""
    return train(tmp_path_factory.mktemp("base")).parent


@pytest.fixture
def image_root(tmp_path: Path) -> Path:
    """Return a folder with one image, a.png."""
    return write_image(tmp_path / "data" / "a.png").parent
