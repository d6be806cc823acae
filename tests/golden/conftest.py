"""Provide fixtures for the parity tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import Tiny


@pytest.fixture(scope="session")
def tiny(golden: Path) -> Tiny:
    torch.set_num_threads(1)
    return Tiny(golden)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize tests by the samples, images and chats in the folder that IXTUNE_GOLDEN names."""
    import json
    import os

    root = Path(os.environ.get("IXTUNE_GOLDEN") or Path(__file__).parents[1] / "fixtures" / "golden")
    for argument, kind in (("sample", "samples"), ("image", "images"), ("chat", "chats"), ("grads_of", "samples")):
        if argument in metafunc.fixturenames:
            entries = json.loads((root / "tiny" / "samples.json").read_text(encoding="utf-8"))[kind]
            names = [entry["name"] for entry in entries] if isinstance(entries, list) else list(entries)
            if argument == "grads_of":
                names = [name for name in names if "grads_file" in entries[name]]
            metafunc.parametrize(argument, names)
