"""Attention in packs without masks: torch's flash kernels, one call per segment.

A segment with a parent takes two calls: a causal one on its own keys, and an unmasked one on the parent's. Their
outputs are merged by the log-sum-exp of their scores, and the backward kernels are given the merged output and the
merged log-sum-exp, with which each returns its share of the exact gradient (as in ring attention, arXiv 2310.01889).
No key is copied, and no mask is made.

Shape letters: B batch (1), L length, H query heads, K key/value heads, d head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, pairwise
from typing import Any, NamedTuple, cast

import torch
from torch.autograd import Function

aten: Any = torch.ops.aten
# From this length on, cuDNN's kernel is faster on Hopper than the flash kernels (tests/bench/results).
LONG = 2048

Parents = tuple[int, ...]


def has_kernel(query: torch.Tensor) -> bool:
    """Return whether torch has a flash kernel for the device and dtype of a tensor."""
    return query.device.type == "cpu" or (query.is_cuda and query.dtype in (torch.float16, torch.bfloat16))


def flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool, scaling: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output [B, H, L, d] and the log-sum-exp of the scores, [B, H, L] in fp32, where `has_kernel`."""
    if query.device.type == "cpu":
        out, sums = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scaling)
    elif _takes_cudnn(query, causal):
        out, sums, *_ = aten._scaled_dot_product_cudnn_attention(
            query, key, value, None, True, 0.0, causal, False, scale=scaling
        )
        sums = sums.squeeze(-1)
    else:
        out, sums, *_ = aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, False, scale=scaling)
    return out, sums


class Call(NamedTuple):
    """Kernel call: rows of the queries, rows of the keys, and whether the mask is causal."""

    queries: slice
    keys: slice
    causal: bool


def calls(bounds: tuple[int, ...], parents: Parents | None) -> Iterator[Call]:
    """List the calls of a pack: every segment on itself, then every run of siblings on their parent.

    Args:
        bounds: first row of every segment, and the number of rows.
        parents: for each segment the number of its parent, -1 without one; None where no segment has one.
    """
    segments = [slice(start, stop) for start, stop in pairwise(bounds)]
    yield from (Call(segment, segment, True) for segment in segments)
    for parent, siblings in groupby(range(len(segments)), key=(parents or (-1,) * len(segments)).__getitem__):
        if parent >= 0:
            rows = [segments[sibling] for sibling in siblings]
            yield Call(slice(rows[0].start, rows[-1].stop), segments[parent], False)


class FlashSegments(Function):
    """Write every segment into one tensor that the next linear shares; joined afterwards they would be kept twice."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bounds: tuple[int, ...],
        parents: Parents | None,
        scaling: float | None,
    ) -> torch.Tensor:
        """Return [B, L, H, d] for query [B, H, L, d], key and value [B, K, L, d]."""
        out = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
        sums_BLH = torch.empty(out.shape[:-1], dtype=torch.float32, device=out.device)
        ctx.calls = tuple(calls(bounds, parents))
        for rows, keys, causal in ctx.calls:
            found, sums = flash(query[:, :, rows], key[:, :, keys], value[:, :, keys], causal, scaling)
            found, sums = found.transpose(1, 2), sums.transpose(1, 2)
            if causal:
                out[:, rows], sums_BLH[:, rows] = found, sums
            else:
                _merge(out[:, rows], sums_BLH[:, rows], found, sums)
        ctx.scaling = scaling
        ctx.save_for_backward(query, key, value, out, sums_BLH)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Return the gradients to query, key and value."""
        query, key, value, out, sums_BLH = ctx.saved_tensors
        to_query, to_key, to_value = (torch.empty_like(tensor) for tensor in (query, key, value))
        for rows, keys, causal in ctx.calls:
            found = _backward(
                gradients[0][:, rows].transpose(1, 2),
                query[:, :, rows],
                key[:, :, keys],
                value[:, :, keys],
                out[:, rows].transpose(1, 2),
                sums_BLH[:, rows].transpose(1, 2).contiguous(),
                causal,
                ctx.scaling,
            )
            for whole, at, part in zip((to_query, to_key, to_value), (rows, keys, keys), found, strict=True):
                if causal:  # the first call for these rows
                    whole[:, :, at] = part
                else:
                    whole[:, :, at] += part
        return to_query, to_key, to_value, None, None, None


def _backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    sums: torch.Tensor,
    causal: bool,
    scaling: float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients to query, key and value, given those to the output."""
    tensors = gradient, query, key, value, out
    lengths = query.shape[2], key.shape[2]
    seed, offset = torch.empty(2, 0, dtype=torch.int64, device=query.device)  # of the dropout, which is 0
    if query.device.type == "cpu":
        found = aten._scaled_dot_product_flash_attention_for_cpu_backward(*tensors, sums, 0.0, causal, scale=scaling)
    elif _takes_cudnn(query, causal):
        found = aten._scaled_dot_product_cudnn_attention_backward(
            *tensors, sums[..., None], seed, offset, None, None, None, *lengths, 0.0, causal, scale=scaling
        )
    else:
        found = aten._scaled_dot_product_flash_attention_backward(
            *tensors, sums, None, None, *lengths, 0.0, causal, seed, offset, scale=scaling
        )
    return cast(tuple[torch.Tensor, torch.Tensor, torch.Tensor], found)


def prefers_cudnn(device: torch.device) -> bool:
    """Return whether cuDNN's kernel is faster than the flash kernel on this GPU for long segments."""
    return torch.cuda.get_device_capability(device) >= (9, 0)


def _takes_cudnn(query: torch.Tensor, causal: bool) -> bool:
    return causal and query.shape[2] >= LONG and prefers_cudnn(query.device)


def _merge(out: torch.Tensor, sums: torch.Tensor, found: torch.Tensor, its_sums: torch.Tensor) -> None:
    """Merge attention to further keys into attention to some keys, in place.

    Args:
        out: [B, L, H, d]
        sums: the log-sum-exp of the scores behind `out`, [B, L, H] in fp32
        found: as `out`, for the further keys
        its_sums: as `sums`, for the further keys
    """
    both = torch.logaddexp(sums, its_sums)
    merged = out.float() * (sums - both).exp_()[..., None]
    out.copy_(merged.addcmul_(found.float(), (its_sums - both).exp_()[..., None]))
    sums.copy_(both)
