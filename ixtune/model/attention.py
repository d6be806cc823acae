"""Attention for packs: several records in one row of tokens, each seeing only itself and its shared prefix.

`segments` is a name in transformers' attention interface, like `sdpa`. Given boundaries it attends inside each
segment, without a mask: on CUDA by torch's varlen kernel, or by cuDNN's one segment at a time where segments are long;
on a CPU by torch's kernel for CPUs, one segment at a time. Without boundaries (padded batches, generation) it is
transformers' sdpa.

A segment may have a parent, an earlier segment whose keys it sees too: the prefix that records of a pack share. It is
computed without copies or masks (`ixtune.model.flash_segments`); in fp32 on CUDA, and on other devices, one segment at
a time with a mask.

Of transformers' own implementations, the flash ones get the boundaries in their format and refuse parents, and
`flex_attention` gets a block mask. `sdpa` and `eager` would silently read across boundaries: packs use `segments`
instead.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from ixtune.errors import IxtuneError
from ixtune.model import flash_segments
from ixtune.model.flash_segments import FlashSegments, Parents, has_kernel, prefers_cudnn

NAME = "segments"
FLEX = "flex_attention"
_FLASH = ("flash_attention_2", "flash_attention_3", "flash_attention_4")
Attend = Callable[..., tuple[torch.Tensor, Any]]


def attention_of(implementation: str | None, *, packed: bool, shared: bool = False) -> Attend:
    """Return the function registered under a name in transformers' attention interface.

    Args:
        implementation: the name.
        packed: whether there are segment boundaries.
        shared: segments have parents.

    Raises:
        IxtuneError: this attention cannot respect the boundaries or the parents.
    """
    if packed and implementation in (None, "eager", "sdpa", NAME):
        return segment_attention
    if packed and implementation in _FLASH:
        if shared:
            raise IxtuneError(
                f"the attention {implementation!r} cannot share the prefixes of records",
                where="attn_implementation",
                hint=f"use {NAME} or {FLEX}, or set training.share_prefixes to false",
            )
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
        # Unless all four are given, it treats the pack as one record.
        both = {"cu_seq_lens_k": cu_seq_lens_q, "max_length_k": max_length_q}
        return plain(*args, cu_seq_lens_q=cu_seq_lens_q, max_length_q=max_length_q, **both, **kwargs)

    return attend


def family_mask(cu_seq_lens: torch.Tensor, parents: Parents) -> Callable[..., torch.Tensor]:
    """Return transformers' mask function that lets a position see its own segment and the parent of that."""
    rows = torch.arange(int(cu_seq_lens[-1]), device=cu_seq_lens.device)
    segment_T = torch.bucketize(rows, cu_seq_lens[1:], right=True)
    parent_T = torch.tensor(parents, device=cu_seq_lens.device)[segment_T]

    def sees(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (segment_T[query] == segment_T[key]) | (parent_T[query] == segment_T[key])

    return sees


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
    parents: Parents | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend causally inside each segment, and to all of its parent.

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
        parents: for each segment the number of its parent, an earlier segment without one; -1 for no parent. None if
            no segment has one.
        **kwargs: the rest of the interface, for the fallback.

    Returns:
        ([1, length, heads, head_dim], None)
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    bounds = bounds or tuple(cu_seq_lens_q.tolist())
    if not has_kernel(query):
        return _by_segment(query, key, value, scaling, bounds, parents), None
    if query.device.type == "cpu" or parents is not None:
        return FlashSegments.apply(query, key, value, bounds, parents, scaling), None  # type: ignore[no-untyped-call]
    if _are_long(bounds) and prefers_cudnn(query.device):
        with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True):
            return _by_segment(query, key, value, scaling, bounds, None), None
    return _varlen(query, key, value, scaling, cu_seq_lens_q, max_length_q), None


def _are_long(bounds: tuple[int, ...]) -> bool:
    """Return whether an average position is in a long segment."""
    lengths = [stop - start for start, stop in pairwise(bounds)]
    return sum(length * length for length in lengths) >= flash_segments.LONG * sum(lengths)


def _by_segment(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    bounds: tuple[int, ...],
    parents: Parents | None,
) -> torch.Tensor:
    parts = list(map(slice, bounds, bounds[1:]))
    outputs = []
    for part, parent in zip(parts, parents or (-1,) * len(parts), strict=True):
        own = query[:, :, part], key[:, :, part], value[:, :, part], scaling
        if parent < 0:
            outputs.append(_attend(*own))
        else:  # recomputed in the backward pass: saving the parent's keys for each child would take gigabytes
            of_parent = key[:, :, parts[parent]], value[:, :, parts[parent]]
            outputs.append(checkpoint(_attend, *own, *of_parent, use_reentrant=False, preserve_rng_state=False))
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)).transpose(1, 2)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    parent_key: torch.Tensor | None = None,
    parent_value: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend causally inside one segment, [1, heads, n, head_dim], and to all of its parent if there is one."""
    mask = None
    if parent_key is not None and parent_value is not None:
        before = parent_key.shape[2]
        key, value = torch.cat((parent_key, key), dim=2), torch.cat((parent_value, value), dim=2)
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril(before)
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


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
    return cast(torch.Tensor, out_THd).unsqueeze(0)  # returns a pair only if more is requested


AttentionInterface.register(NAME, segment_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
