"""Tests that need a GPU: `make gpu` runs them, all others leave the GPU alone (see conftest.py)."""

from __future__ import annotations

import pytest
import torch

NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
