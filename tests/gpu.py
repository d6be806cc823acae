"""Mark tests that need a GPU: `make gpu` runs them, all others do not use it (see conftest.py)."""

from __future__ import annotations

import pytest
import torch

NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
