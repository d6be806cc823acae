"""Mark tests that need a GPU: `make gpu` runs them, all others do not use it (see conftest.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    # torch's compiler warns of itself, and of its own look at a gradient
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute of a Tensor"),
]


def needs_gpu(test: Callable[..., Any]) -> Callable[..., Any]:
    """Apply NEEDS_GPU to a test."""
    for mark in NEEDS_GPU:
        test = mark(test)
    return test
