"""The base as a QLoRA training sees it: NF4 there and back."""

from __future__ import annotations

import re

import torch

from ixtune.model.notices import without_kernels_notice

BLOCK_ELEMENTS = 64  # elements that share one scale, bitsandbytes' default and that of QLoRA (arXiv 2305.14314)
_DECODER_LINEAR = re.compile(r"model\.layers\.\d+\.(attention\.(wqkv|wo)|feed_forward\.w[123])\.weight")


def is_decoder_linear(name: str) -> bool:
    """Whether a tensor, by its original name, is one of those that training quantises."""
    return _DECODER_LINEAR.fullmatch(name) is not None


def nf4_round_trip(weight: torch.Tensor) -> torch.Tensor:
    """Quantise to NF4 with double quantisation and back, as `bitsandbytes.nn.Linear4bit` does.

    The whole matrix is needed: the scales of its blocks are themselves quantised around their common mean.

    Args:
        weight: [out, in], in the dtype that training computed in: it casts the stored weight to that first,
            and what comes back is rounded to it.

    Returns:
        [out, in] in the dtype of `weight`.
    """
    with without_kernels_notice():
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    codes, state = quantize_4bit(weight, blocksize=BLOCK_ELEMENTS, compress_statistics=True, quant_type="nf4")
    return dequantize_4bit(codes, state)
