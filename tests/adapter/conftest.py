"""Fixtures of the adapter's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_base import write_small_base


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random base in the original form."""
    return write_small_base(tmp_path_factory.mktemp("small") / "base")
