"""Read a base as QLoRA training sees it: quantized to NF4 and back, in row blocks.

Only the scales need the whole matrix, since they are quantized around their common mean: one float per 64 elements is
kept, and rows are quantized on demand.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch

from ixtune.checkpoint.safetensors_file import TensorInfo
from ixtune.checkpoint.shards import Checkpoint
from ixtune.errors import IxtuneError
from ixtune.model.notices import without_kernels_notice

BLOCK_ELEMENTS = 64  # elements per scale: the default of bitsandbytes and of QLoRA (arXiv 2305.14314)
_SCALES_PER_BLOCK = 256  # scales per second-level scale, same sources
_CACHED_BLOCKS = 1024  # elements quantized at a time: 256 KiB of float32; twice and half as many were slower
_DECODER_LINEAR = re.compile(r"model\.layers\.\d+\.(attention\.(wqkv|wo)|feed_forward\.w[123])\.weight")


def is_decoder_linear(name: str) -> bool:
    """Return whether training quantizes the tensor with this original name."""
    return _DECODER_LINEAR.fullmatch(name) is not None


class Nf4View(Checkpoint):
    """View a checkpoint with decoder linears double-quantized to NF4 and dequantized.

    The weights equal those of `bitsandbytes.nn.Linear4bit` bit for bit. Other tensors are read as they are stored.
    """

    def __init__(self, base: Checkpoint, held_as: Callable[[torch.dtype], torch.dtype]) -> None:
        """View a base.

        Args:
            base: Checkpoint to quantize.
            held_as: Stored dtype -> compute dtype of training: the stored weight is cast to it first, and the result
                is rounded to it.
        """
        self.folder, self.shards, self.by_name = base.folder, base.shards, base.by_name
        self._base = base
        self._held_as = held_as
        self._scales: tuple[str, torch.Tensor] | None = None  # scales of the tensor read last

    def read_rows(self, name: str, start: int, stop: int, into: torch.Tensor | None = None) -> torch.Tensor:
        """Return rows [start, stop) in the dtype of training, see `Checkpoint.read_rows`."""
        if not is_decoder_linear(name) or start == stop:
            return self._base.read_rows(name, start, stop, into)
        info = self.by_name[name]
        scales_per_row = info.shape[1] // BLOCK_ELEMENTS
        scales = self._scales_of(info)[start * scales_per_row : stop * scales_per_row]
        return _round_trip(self._held(info, start, stop, into), scales)

    def _held(self, info: TensorInfo, start: int, stop: int, into: torch.Tensor | None = None) -> torch.Tensor:
        return self._base.read_rows(info.name, start, stop, into).to(self._held_as(info.dtype))

    def _scales_of(self, info: TensorInfo) -> torch.Tensor:
        """Return the scale of every 64 elements after quantizing the scales, float32 [elements / 64]."""
        if self._scales is None or self._scales[0] != info.name:
            if info.shape[1] % BLOCK_ELEMENTS:
                # bitsandbytes 0.50 dequantizes such rows differently depending on their position in the matrix
                raise IxtuneError(
                    f"{info.name} has rows of {info.shape[1]} elements, which is not a multiple of the NF4 block size",
                    where=str(self.folder),
                    hint="merge onto bf16",
                )
            parts = [
                self._held(info, start, stop).view(-1, BLOCK_ELEMENTS).abs().amax(1).float()
                for start, stop in info.row_blocks()
            ]
            self._scales = info.name, _quantized_scales(torch.cat(parts))
        return self._scales[1]


def _quantized_scales(scales: torch.Tensor) -> torch.Tensor:
    """Return scales after double quantization and back, float32 of the same length."""
    with without_kernels_notice():
        from bitsandbytes.functional import dequantize_blockwise, quantize_blockwise

    mean = scales.mean()
    codes, state = quantize_blockwise(scales - mean, blocksize=_SCALES_PER_BLOCK)
    return dequantize_blockwise(codes, state) + mean


def _round_trip(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Quantize rows to 4 bits with their own scales, and dequantize them with the given ones."""
    with without_kernels_notice():
        from bitsandbytes.functional import QuantState, dequantize_4bit, get_4bit_type

    levels = get_4bit_type("nf4", device=weight.device)
    state = QuantState(
        absmax=scales,
        shape=weight.shape,
        dtype=weight.dtype,
        blocksize=BLOCK_ELEMENTS,
        code=levels,
        quant_type="nf4",
    )
    return dequantize_4bit(_codes(weight, levels), state)


def _codes(weight: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Return NF4 codes, two per byte, uint8 [elements / 2, 1]; bit-equal to bitsandbytes' `quantize_4bit` on a CPU.

    The code of an element is the number of boundaries below it. bitsandbytes 0.50 looks for it by a search for each
    element, two thirds of a merge's time; 15 comparisons of some thousand elements at a time, which stay in the
    processor's cache, took a quarter of that.
    """
    boundaries = ((levels[:-1] + levels[1:]) / 2).tolist()
    codes = torch.empty(weight.numel(), dtype=torch.uint8)
    for part, into in zip(
        weight.reshape(-1, BLOCK_ELEMENTS).split(_CACHED_BLOCKS),
        codes.split(_CACHED_BLOCKS * BLOCK_ELEMENTS),
        strict=True,
    ):
        unit = part.float()
        unit = unit * (1.0 / unit.abs().amax(1, keepdim=True).clamp(min=1e-38))
        below, is_below = torch.zeros_like(unit), torch.empty_like(unit)
        for boundary in boundaries:
            below += torch.gt(unit, boundary, out=is_below)  # into floats: torch writes bools one by one
        into.copy_(below.view(-1))
    pairs = codes.view(-1, 2)
    return (pairs[:, :1] << 4) | pairs[:, 1:]
