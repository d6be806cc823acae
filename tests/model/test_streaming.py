"""Test that loading in NF4 never holds the whole model in 16 bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import torch
from safetensors.torch import save_file
from small_base import RELEASED_CONFIG, SMALL

from ixtune.checkpoint.name_mapping import to_original_name
from ixtune.model.configuration import IXC2Config
from ixtune.model.loading import empty

SIZES = {"hidden_size": 256, "intermediate_size": 2048, "num_hidden_layers": 20, "torch_dtype": "bfloat16"}
SHARDS = 3
# The C library gives every large block back at once, so that resident memory follows the tensors, as it does by
# itself with those of a 7B.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000"}


def write_shards(folder: Path, form: str) -> int:
    """Write a checkpoint in several shards; return the bytes of its tensors."""
    folder.mkdir()
    settings = {**RELEASED_CONFIG, **SMALL, **SIZES}
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    config = IXC2Config.from_pretrained(folder)
    shapes = {
        to_original_name(name): tensor.shape
        for name, tensor in empty(config, quantize=False, dtype=torch.bfloat16).named_parameters()
    }
    values = (torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    names = list(shapes)
    stem = {"safetensors": "model", "bin": "pytorch_model"}[form]
    weight_map = {}
    for number in range(SHARDS):
        part = names[number * len(names) // SHARDS : (number + 1) * len(names) // SHARDS]
        tensors = {name: values[: shapes[name].numel()].view(shapes[name]).clone() for name in part}
        file = f"{stem}-{number + 1:05d}-of-{SHARDS:05d}.{form}"
        (save_file if form == "safetensors" else torch.save)(tensors, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / f"{stem}.{form}.index.json").write_text(index, encoding="utf-8")
    return sum(2 * shape.numel() for shape in shapes.values())


def test_loading_in_nf4_peaks_far_below_the_16_bit_size(tmp_path: Path) -> None:
    """NF4 takes 0.26 of it; through transformers' loader the peak was 1.5 times the 16-bit size (TRAPS.md 16c)."""
    sizes_bytes = [write_shards(tmp_path / form, form) for form in ("safetensors", "bin")]
    assert min(sizes_bytes) > 60 << 20
    script = f"""
        import re
        from pathlib import Path
        import torch
        from bitsandbytes.functional import quantize_4bit
        from ixtune.model.loading import load_base
        def status_bytes(key):
            return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) * 1024
        quantize_4bit(torch.ones(64, 64), quant_type="nf4")  # what it sets up once
        for form in ("safetensors", "bin"):
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            before = status_bytes("VmRSS")
            load_base(Path({str(tmp_path)!r}) / form, quantize=True, dtype=torch.bfloat16)
            print(status_bytes("VmHWM") - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True, text=True, check=True, env={**os.environ, **ALLOCATOR},
    )  # fmt: skip
    peaks_bytes = list(map(int, done.stdout.split()))
    shares = [peak / size for peak, size in zip(peaks_bytes, sizes_bytes, strict=True)]
    assert len(shares) == 2
    assert all(0.2 < share < 0.55 for share in shares), shares
