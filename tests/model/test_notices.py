"""Test that libraries print no notices when ixtune is used from Python."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from ixtune.model.notices import without_kernels_notice

ROOT = Path(__file__).resolve().parents[2]
LOADING = """
import torch
from pathlib import Path
from ixtune.model.loading import load_base
load_base(Path({folder!r}), quantize=True, dtype=torch.float32)
"""
ROUND_TRIP = """
import torch
from pathlib import Path
from ixtune.merging.nf4_view import Nf4View
from ixtune.checkpoint.shards import open_checkpoint
view = Nf4View(open_checkpoint(Path({folder!r})), lambda stored: torch.float32)
view.read("model.layers.0.attention.wo.weight")
"""


@pytest.mark.parametrize("code", [LOADING, ROUND_TRIP], ids=["load_base", "Nf4View"])
def test_quantizing_prints_nothing(small: Path, code: str) -> None:
    command = [sys.executable, "-c", code.format(folder=str(small))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_only_one_notice_is_suppressed_and_only_inside_the_block(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    caplog.set_level(logging.WARNING, logger.name)  # the command line in this process raises it
    notice = "Failed to load CPU gemm_4bit_forward from kernels-community: %s."
    with without_kernels_notice():
        logger.warning(notice, "no module")
        logger.warning("something else")
        logger.error("an error")
    logger.warning(notice, "afterwards")
    assert [record.args or record.msg for record in caplog.records] == ["something else", "an error", ("afterwards",)]
