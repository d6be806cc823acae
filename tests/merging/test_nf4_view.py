"""Test that a QLoRA is merged into the base it was trained on, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, get_4bit_type, quantize_4bit
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file, save_file

from ixtune.checkpoint.name_mapping import to_original_name
from ixtune.checkpoint.safetensors_file import TensorInfo
from ixtune.checkpoint.shards import open_checkpoint
from ixtune.errors import IxtuneError
from ixtune.merging.nf4_view import Nf4View, _codes, is_decoder_linear
from ixtune.model.loading import load_base

NAME = "model.layers.0.attention.wo.weight"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_round_trip_of_a_stored_weight_equals_that_of_training(small: Path, dtype: torch.dtype) -> None:
    stored = load_file(small / "model.safetensors")
    model, _ = load_base(small, quantize=True, dtype=dtype)
    quantized = {
        to_original_name(f"{name}.weight"): module.weight
        for name, module in model.named_modules()
        if isinstance(module, Linear4bit)
    }
    assert set(quantized) == {name for name in stored if is_decoder_linear(name)}
    view = Nf4View(open_checkpoint(small), lambda stored: dtype)
    for name, weight in quantized.items():
        trained_on = dequantize_4bit(weight.data, weight.quant_state)
        merged_into = view.read(name)
        assert trained_on.dtype == merged_into.dtype == dtype
        assert torch.equal(trained_on, merged_into), name
        assert not torch.equal(trained_on, stored[name].to(dtype))


@pytest.mark.parametrize("width", [64, 192, 4096])
def test_rows_read_alone_equal_those_of_the_whole_matrix(
    tmp_path: Path, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check this for any block size."""
    monkeypatch.setattr(TensorInfo, "row_blocks", lambda self: _blocks_of_three(self.rows))
    weight = torch.randn(301, width, generator=torch.Generator().manual_seed(width)).bfloat16()
    save_file({NAME: weight}, tmp_path / "model.safetensors")
    codes, state = quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    expected = dequantize_4bit(codes, state)
    view = Nf4View(open_checkpoint(tmp_path), lambda stored: stored)
    assert torch.equal(view.read(NAME), expected)
    for start, stop in ((0, 1), (7, 8), (5, 250), (300, 301), (4, 4)):
        assert torch.equal(view.read_rows(NAME, start, stop), expected[start:stop])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_codes_match_bitsandbytes_on_boundaries_and_zero_blocks(dtype: torch.dtype) -> None:
    levels = get_4bit_type("nf4", device=torch.device("cpu"))
    boundaries = (levels[:-1] + levels[1:]) / 2
    edges = torch.cat((levels, boundaries, boundaries.nextafter(torch.tensor(2.0)), torch.zeros(18)))
    rest = torch.randn(5000, 64, generator=torch.Generator().manual_seed(0))
    weight = torch.cat((edges[None], torch.zeros(1, 64), rest, 1e-30 * rest[:1], 1e30 * edges[None])).to(dtype)
    weight = weight.nan_to_num(posinf=1.0, neginf=-1.0)  # float16 has no 1e30
    expected, _ = quantize_4bit(weight, blocksize=64, compress_statistics=False, quant_type="nf4")
    assert torch.equal(_codes(weight, levels), expected)


def _blocks_of_three(rows: int) -> Iterator[tuple[int, int]]:
    yield from ((start, min(start + 3, rows)) for start in range(0, rows, 3))


def test_rows_that_do_not_fill_blocks_are_refused(tmp_path: Path) -> None:
    save_file({NAME: torch.ones(8, 96).bfloat16()}, tmp_path / "model.safetensors")
    with pytest.raises(IxtuneError, match="rows of 96 elements"):
        Nf4View(open_checkpoint(tmp_path), lambda stored: stored).read(NAME)
