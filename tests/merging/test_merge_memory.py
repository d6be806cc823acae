"""Test that a merge holds row blocks, never a whole tensor: peak memory of a separate process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from ixtune.checkpoint.safetensors_file import TensorInfo, row_major, write_safetensors

ROWS, WIDTH, RANK = 92_544, 4096, 64


def write_base(folder: Path, rows: int) -> None:
    """Write one matrix of random bfloat16 values."""
    folder.mkdir()
    info = TensorInfo(
        "output.weight", (rows, WIDTH), torch.bfloat16, "model.safetensors", None, row_major((rows, WIDTH))
    )
    generator = torch.Generator().manual_seed(0)

    def blocks(info: TensorInfo) -> Iterator[torch.Tensor]:
        for start, stop in info.row_blocks():
            yield torch.rand(stop - start, WIDTH, generator=generator).bfloat16()

    write_safetensors(folder / "model.safetensors", [info], blocks)


def write_adapter(folder: Path, rows: int, rank: int) -> None:
    folder.mkdir()
    pair = {"lora_A": torch.ones(rank, WIDTH), "lora_B": torch.ones(rows, rank)}
    save_file({f"base_model.model.output.{k}.weight": v for k, v in pair.items()}, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def test_memory_stays_small_for_the_7bs_vocabulary_matrix(tmp_path: Path) -> None:
    """Merge 723 MiB of bfloat16; reading it at once or through a memory map would raise the peak (TRAPS.md 16c)."""
    write_base(tmp_path / "base", ROWS)
    write_adapter(tmp_path / "adapter", ROWS, RANK)
    script = f"""
        import re
        from pathlib import Path
        from ixtune.merging.merge import merge
        def status(key):
            return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024
        before = status("VmRSS")
        root = Path({str(tmp_path)!r})
        report = merge(root / "adapter", root / "base", root / "merged")
        assert report.changed == 1
        print(status("VmHWM") - before)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    shutil.rmtree(tmp_path / "merged")
    shutil.rmtree(tmp_path / "base")
    assert float(done.stdout) < 100  # MiB; 256 are allowed, 30 were measured
