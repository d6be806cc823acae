"""Keys and values of a prompt's prefix, computed once and read by every row of a batch that starts with it.

Attention is causal, so a prefix's keys and values do not depend on what follows. A row attends to its prefix and to
its own tokens separately; the two softmaxes are merged by their log-sum-exp, so no row needs a copy of the prefix.

Shape letters: B rows, P prefix length, L length of a step, M own tokens so far, D hidden, H query heads, K key/value
heads, G query heads per K, d head width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from ixtune.model.flash_segments import flash, has_kernel

_SCORE_BYTES = 256 << 20  # bytes of fp32 scores that the portable path holds at a time


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """Keys and values of the first tokens of a prompt.

    Attributes:
        length: Number of tokens, P.
        keys: [1, K, P, d] of each layer.
        values: [1, K, P, d] of each layer.
    """

    length: int
    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))


@torch.no_grad()
def compute_prefix(
    model: Any,
    ids: Sequence[int],
    images: Mapping[str, Any],
    start: Prefix | None = None,
    sequence_tokens: int | None = None,
) -> Prefix:
    """Run the model over the first tokens of a prompt and keep their keys and values.

    Args:
        model: The network, bare or with an adapter.
        ids: Token ids of the prefix, the image token's at image positions.
        images: Images of the prefix as the model's keyword arguments; after `start`, of the remaining ids only.
        start: Keys and values of the first `start.length` ids, computed before.
        sequence_tokens: Length of the whole prompt, for dynamic rotary scaling; None for that of the prefix.
    """
    device = next(model.parameters()).device
    cache = DynamicCache()
    if start is not None:
        for layer, (key, value) in enumerate(zip(start.keys, start.values, strict=True)):
            cache.update(key, value, layer)
    rest = ids[start.length if start is not None else 0 :]
    there = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in images.items()}
    model(
        input_ids=torch.tensor([list(rest)], device=device),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        **({"sequence_tokens": sequence_tokens} if sequence_tokens else {}),
        **there,
    )
    layers: Sequence[Any] = cache.layers
    return Prefix(len(ids), tuple(layer.keys for layer in layers), tuple(layer.values for layer in layers))


class SharedPrefixCache(Cache):
    """KV cache of a batch whose rows continue prefixes: stores the rows' own tokens, refers to the prefixes.

    `generate` is given whole prompts padded on the left; the cache reports that all but the last `own` columns were
    seen, and the columns of a row before its own tokens are masked.
    """

    def __init__(self, prefixes: Sequence[Prefix | None], own: Sequence[int], columns: int) -> None:
        """Start a batch.

        Args:
            prefixes: Prefix of each row; rows that share one are neighbors.
            own: Number of tokens of each row after its prefix.
            columns: Length of the padded prompts.
        """
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self._seen = columns - max(own)
        self._arrange(prefixes, own)

    @property
    def is_linear(self) -> list[bool]:
        """Return whether layers are of linear attention: none is.

        From 5.24 on, transformers takes a cache that has no layers yet for a linear one, and computes all columns.
        """
        return [False]

    def join(self, other: SharedPrefixCache) -> None:
        """Append the rows of another batch; their last own tokens end in the same column as those of this one.

        The caller passes position ids from then on: a column no longer has one position for all rows.
        """
        own = [*self.own, *other.own]
        for mine, theirs in zip(self._filled(), other._filled(), strict=True):
            longest = max(mine.keys.shape[2], theirs.keys.shape[2])
            mine.keys = torch.cat([_wider(mine.keys, longest), _wider(theirs.keys, longest)])
            mine.values = torch.cat([_wider(mine.values, longest), _wider(theirs.values, longest)])
        self._arrange([*self._prefixes, *other._prefixes], own)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order, and drop columns that no row uses any more."""
        own = self.own
        kept = [own[row] for row in rows]
        for layer in self._filled():
            first = layer.keys.shape[2] - max(kept)
            index = torch.tensor(list(rows), device=layer.keys.device)
            layer.keys = layer.keys[:, :, first:].index_select(0, index)
            layer.values = layer.values[:, :, first:].index_select(0, index)
        self._arrange([self._prefixes[row] for row in rows], kept)

    @property
    def own(self) -> list[int]:
        """Number of tokens of each row after its prefix so far."""
        columns = self._filled()[0].keys.shape[2]
        return [columns - pad for pad in self._pads]

    def _filled(self) -> list[Any]:
        layers: list[Any] = self.layers
        return layers

    def _arrange(self, prefixes: Sequence[Prefix | None], own: Sequence[int]) -> None:
        """Note which rows share a prefix, and how many columns of each row are padding."""
        self._prefixes = list(prefixes)
        self._pads = [max(own) - count for count in own]
        self._hidden: torch.Tensor | None = None
        self._runs: list[tuple[Prefix | None, slice]] = []
        for _, group in groupby(range(len(own)), key=lambda row: id(prefixes[row])):
            rows = list(group)
            self._runs.append((prefixes[rows[0]], slice(rows[0], rows[-1] + 1)))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of columns that need not be computed again."""
        return self._seen + int(super().get_seq_length(layer_idx))

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Attend to the prefixes and, causally, to the rows' own tokens.

        Args:
            layer: Index of the layer.
            query: [B, H, L, d].
            key: [B, K, M, d], of the own tokens so far, as `update` returned them.
            value: [B, K, M, d].
            scaling: Multiplier of the scores.

        Returns:
            [B, L, H, d]
        """
        out, log_sum = self._own(query, key, value, scaling)
        for prefix, rows in self._runs:
            if prefix is not None:
                shared, log_sum_shared = _attend_all(query[rows], prefix.keys[layer], prefix.values[layer], scaling)
                # softmax over both parts: weights exp(a) / (exp(a) + exp(b))
                out[rows] = torch.lerp(out[rows], shared, torch.sigmoid(log_sum_shared - log_sum[rows])[..., None])
        return out.transpose(1, 2).to(query.dtype)

    def _own(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention of the rows to their own tokens: fp32 [B, H, L, d] and its log-sum-exp [B, H, L]."""
        if query.shape[2] == 1:
            return _weigh(query, key, value, scaling, self._padding(key.shape[2], key.device))
        assert query.shape[2] == key.shape[2], "several tokens at once only where a batch starts"
        out = torch.zeros(query.shape, device=query.device)
        log_sum = torch.full(query.shape[:3], -math.inf, device=query.device)
        for row, pad in enumerate(self._pads):
            part = (slice(row, row + 1), slice(None), slice(pad, None))
            out[part], log_sum[part] = _attend_causally(query[part], key[part], value[part], scaling)
        return out, log_sum

    def _padding(self, columns: int, device: torch.device) -> torch.Tensor | None:
        """Return which columns of the own tokens are padding, [B, 1, 1, M]; made once per step, not per layer."""
        if not any(self._pads):
            return None
        if self._hidden is None or self._hidden.shape[-1] != columns:
            hidden_BM = torch.arange(columns) < torch.tensor(self._pads)[:, None]
            self._hidden = hidden_BM[:, None, None].to(device)
        return self._hidden


def _wider(tensor: torch.Tensor, columns: int) -> torch.Tensor:
    """Pad [B, K, M, d] with zeros on the left of M up to this number of columns."""
    return torch.nn.functional.pad(tensor, (0, 0, columns - tensor.shape[2], 0))


def _attend_all(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of all rows to one prefix: query [B, H, L, d], key [1, K, P, d] -> fp32 [B, H, L, d], [B, H, L].

    Rows and the heads of a group become queries of one head, so that each key is read once for all of them.
    """
    rows, heads, length, width = query.shape
    groups = key.shape[1]
    folded = query.reshape(rows, groups, -1, width).transpose(0, 1).reshape(1, groups, -1, width)
    attend = flash if has_kernel(folded) else _in_parts
    out, log_sum = attend(folded, key, value, causal=False, scaling=scaling)
    out = out.float().reshape(groups, rows, -1, width).transpose(0, 1).reshape(rows, heads, length, width)
    return out, log_sum.reshape(groups, rows, -1).transpose(0, 1).reshape(rows, heads, length)


def _attend_causally(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention of one row to itself: fp32 [1, H, L, d] and [1, H, L]."""
    attend = flash if has_kernel(query) else _in_parts
    out, log_sum = attend(query, key, value, causal=True, scaling=scaling)
    return out.float(), log_sum


def _in_parts(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in fp32 by plain matrix products, some queries at a time, where there is no flash kernel."""
    length, seen = query.shape[2], key.shape[2]
    size = max(1, _SCORE_BYTES // (4 * query.shape[0] * query.shape[1] * seen))
    parts = []
    for start in range(0, length, size):
        part = query[:, :, start : start + size]
        hidden = None
        if causal:
            columns = torch.arange(seen, device=key.device)
            hidden = columns > torch.arange(start, start + part.shape[2], device=key.device)[:, None]
        parts.append(_weigh(part, key, value, scaling, hidden))
    return torch.cat([out for out, _ in parts], dim=2), torch.cat([log_sum for _, log_sum in parts], dim=2)


def _weigh(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, hidden: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention in fp32: query [B, H, L, d], key [B, K, M, d], `hidden` broadcast to [B, H, L, M]."""
    grouped = (key.shape[0], key.shape[1], query.shape[1] // key.shape[1] * query.shape[2], key.shape[2])
    with torch.autocast(query.device.type, enabled=False):
        scores = query.float().reshape(*grouped[:3], -1) @ key.float().transpose(2, 3) * scaling
        scores = scores.view(*query.shape[:3], -1)
        if hidden is not None:
            scores = scores.masked_fill(hidden, -math.inf)
        log_sum = scores.logsumexp(-1)
        weights = (scores - log_sum[..., None]).exp().reshape(grouped)
        return (weights @ value.float()).view(query.shape), log_sum
