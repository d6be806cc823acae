"""Attention for packs: several records in one row of tokens, each seeing only itself.

`segments` is a name in transformers' attention interface, like `sdpa`. Given boundaries it attends inside each
segment, without any mask: torch's varlen kernel on CUDA, one SDPA call a segment elsewhere. Given none (padded
batches, generation) it is transformers' sdpa.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "segments"


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
    bounds = cu_seq_lens_q.tolist()
    outputs = [
        scaled_dot_product_attention(
            query[:, :, start:stop],
            key[:, :, start:stop],
            value[:, :, start:stop],
            is_causal=True,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        for start, stop in zip(bounds, bounds[1:], strict=False)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


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
