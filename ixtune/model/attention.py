"""Attention for packs: several records in one row of tokens, each seeing only itself.

`segments` is a name in transformers' attention interface, like `sdpa`. Given boundaries it attends inside each
segment, without any mask: torch's varlen kernel on CUDA, its kernel for CPUs a segment at a time elsewhere. Given none
(padded batches, generation) it is transformers' sdpa.

Of transformers' own names the flash ones are given the boundaries in their way and `flex_attention` a mask of blocks.
`sdpa` and `eager` would read over the boundaries in silence: packs take `segments` in their place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.autograd import Function
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
            mend=f"use one of {', '.join((NAME, 'sdpa', 'eager', FLEX, *_FLASH))}",
        )
    return cast(Attend, ALL_ATTENTION_FUNCTIONS.get_interface(cast(str, implementation), eager_attention_forward))


def _flash_of(implementation: str) -> Attend:
    plain = cast(Attend, ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward))

    def attend(*args: Any, cu_seq_lens_q: torch.Tensor, max_length_q: int, **kwargs: Any) -> tuple[torch.Tensor, Any]:
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
        **kwargs: the rest of the interface, for the fallback.

    Returns:
        ([1, length, heads, head_dim], None)
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):  # all that the varlen kernel takes
        return _varlen(query, key, value, scaling, cu_seq_lens_q, max_length_q), None
    if query.device.type == "cpu":
        return _OneByOne.apply(query, key, value, cu_seq_lens_q.tolist(), scaling), None
    bounds = cu_seq_lens_q.tolist()
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
    return torch.cat(outputs, dim=2).transpose(1, 2), None


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
        bounds: list[int],
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
    """The CUDA path. Not yet run on a GPU."""
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
