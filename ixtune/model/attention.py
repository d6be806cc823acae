"""Attention for packs: several records in one row of tokens, each seeing only itself.

`segments` is a name in transformers' attention interface, like `sdpa`. Given boundaries it attends inside each
segment, without any mask: on CUDA by torch's varlen kernel, or by cuDNN's a segment at a time where segments are long;
by torch's kernel for CPUs a segment at a time elsewhere. Given none (padded batches, generation) it is transformers'
sdpa.

Of transformers' own names the flash ones are given the boundaries in their way and `flex_attention` a mask of blocks.
`sdpa` and `eager` would read over the boundaries in silence: packs take `segments` in their place.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

import torch
from torch import nn
from torch.autograd import Function
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from ixtune.errors import IxtuneError

NAME = "segments"
FLEX = "flex_attention"
_FLASH = ("flash_attention_2", "flash_attention_3", "flash_attention_4")
# From here on cuDNN's kernel, once a segment, is faster on Hopper than the varlen kernel once (tests/bench/results).
_LONG = 2048

Attend = Callable[..., tuple[torch.Tensor, Any]]


def attention_of(implementation: str | None, *, packed: bool) -> Attend:
    """The function behind a name in transformers' attention interface, fit for packs where there are boundaries.

    Raises:
        IxtuneError: it is not known how this one is told about segments.
    """
    if packed and implementation in (None, "eager", "sdpa", NAME):
        return segment_attention
    if packed and implementation in _FLASH:
        return _flash_of(implementation)
    if packed and implementation != FLEX:
        raise IxtuneError(
            f"the attention {implementation!r} cannot keep the records of a pack apart",
            where="attn_implementation",
            hint=f"use one of {', '.join((NAME, 'sdpa', 'eager', FLEX, *_FLASH))}",
        )
    return cast(Attend, ALL_ATTENTION_FUNCTIONS.get_interface(cast(str, implementation), eager_attention_forward))


def _flash_of(implementation: str) -> Attend:
    plain = cast(Attend, ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward))

    def attend(
        *args: Any, cu_seq_lens_q: torch.Tensor, max_length_q: int, bounds: Any = None, **kwargs: Any
    ) -> tuple[torch.Tensor, Any]:
        # Unless all four are there it takes the pack for one record.
        both = {"cu_seq_lens_k": cu_seq_lens_q, "max_length_k": max_length_q}
        return plain(*args, cu_seq_lens_q=cu_seq_lens_q, max_length_q=max_length_q, **both, **kwargs)

    return attend


def segment_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    bounds: tuple[int, ...] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each segment.

    Args:
        module: the attention layer (read for its grouping of heads by the fallback).
        query: [1, heads, length, head_dim]; key, value: [1, kv_heads, length, head_dim].
        key: see query.
        value: see query.
        attention_mask: used only where no boundaries are given.
        dropout: must be 0 with boundaries (the network has none).
        scaling: multiplier of the scores; None means 1/sqrt(head_dim).
        cu_seq_lens_q: int32 [segments + 1], 0 first and length last (flash attention's convention).
        max_length_q: length of the longest segment (needed by the varlen kernel).
        bounds: the numbers of cu_seq_lens_q, so that no layer has to ask a GPU for them.
        **kwargs: the rest of the interface, for the fallback.

    Returns:
        ([1, length, heads, head_dim], None)
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    bounds = bounds or tuple(cu_seq_lens_q.tolist())
    if query.device.type == "cpu":
        return _OneByOne.apply(query, key, value, bounds, scaling), None
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):  # all that the varlen kernel takes
        if not _are_long(bounds) or torch.cuda.get_device_capability(query.device) < (9, 0):
            return _varlen(query, key, value, scaling, cu_seq_lens_q, max_length_q), None
        with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True):
            return _by_segment(query, key, value, scaling, bounds), None
    return _by_segment(query, key, value, scaling, bounds), None


def _are_long(bounds: tuple[int, ...]) -> bool:
    """Whether the segment that an average position is in is a long one."""
    lengths = [stop - start for start, stop in pairwise(bounds)]
    return sum(length * length for length in lengths) >= _LONG * sum(lengths)


def _by_segment(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, bounds: tuple[int, ...]
) -> torch.Tensor:
    outputs = [
        scaled_dot_product_attention(
            query[:, :, part],
            key[:, :, part],
            value[:, :, part],
            is_causal=True,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        for part in map(slice, bounds, bounds[1:])
    ]
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)).transpose(1, 2)


class _OneByOne(Function):
    """Segment after segment, into one tensor that the next linear shares; joined afterwards they would be kept twice.

    Shapes as `segment_attention` has them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bounds: tuple[int, ...],
        scaling: float | None,
    ) -> torch.Tensor:
        out = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
        sums = []
        for part in map(slice, bounds, bounds[1:]):
            found, sum_of_powers = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query[:, :, part], key[:, :, part], value[:, :, part], 0.0, True, scale=scaling
            )
            out[:, part] = found.transpose(1, 2)
            sums.append(sum_of_powers)
        ctx.bounds, ctx.scaling = bounds, scaling
        ctx.save_for_backward(query, key, value, out, *sums)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        query, key, value, out, *sums = ctx.saved_tensors
        to_inputs = [torch.empty_like(tensor) for tensor in (query, key, value)]
        for part, sum_of_powers in zip(map(slice, ctx.bounds, ctx.bounds[1:]), sums, strict=True):
            found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                gradients[0][:, part].transpose(1, 2),
                query[:, :, part],
                key[:, :, part],
                value[:, :, part],
                out[:, part].transpose(1, 2),
                sum_of_powers,
                0.0,
                True,
                scale=ctx.scaling,
            )
            for to_input, to_part in zip(to_inputs, found, strict=True):
                to_input[:, :, part] = to_part
        return *to_inputs, None, None


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    cu_seq_lens: torch.Tensor,
    max_length: int | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    q_THd, k_THd, v_THd = (t[0].transpose(0, 1).contiguous() for t in (query, key, value))
    longest = max_length if max_length is not None else int(cu_seq_lens.diff().max())
    out_THd = varlen_attn(
        q_THd,
        k_THd,
        v_THd,
        cu_seq_lens,
        cu_seq_lens,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return cast(torch.Tensor, out_THd).unsqueeze(0)  # a pair only where more is asked for


AttentionInterface.register(NAME, segment_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
