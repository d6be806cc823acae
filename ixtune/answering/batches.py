"""Put questions about the same images into the same batch."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Size:
    """Size of a prompt in a batch.

    Attributes:
        prefix: Equal for prompts that start with the same images and text; None without images.
        prefix_tokens: Tokens that such prompts share.
        own_tokens: Remaining tokens, including those of the answer.
    """

    prefix: Hashable
    prefix_tokens: int
    own_tokens: int


def batches(sizes: Sequence[Size], *, max_rows: int | None = None, max_tokens: int | None = None) -> list[list[int]]:
    """Return indices of prompts batch by batch; prompts with the same prefix are neighbors.

    Args:
        sizes: Sizes of all prompts.
        max_rows: Maximum number of prompts in a batch.
        max_tokens: Maximum number of tokens in a batch: each prefix once, own tokens padded to the longest. A prompt
            that exceeds it is alone.
    """
    first: dict[Hashable, int] = {}
    for index, size in enumerate(sizes):
        first.setdefault(size.prefix, index)
    # similar lengths together, and each group in one piece
    order = sorted(
        range(len(sizes)), key=lambda at: (sizes[at].prefix_tokens, first[sizes[at].prefix], sizes[at].own_tokens, at)
    )
    made: list[list[int]] = []
    for index in order:
        if made and _fits([sizes[at] for at in (*made[-1], index)], max_rows, max_tokens):
            made[-1].append(index)
        else:
            made.append([index])
    return made


def _fits(chosen: Sequence[Size], max_rows: int | None, max_tokens: int | None) -> bool:
    if max_rows is not None and len(chosen) > max_rows:
        return False
    prefixes = {size.prefix: size.prefix_tokens for size in chosen}
    tokens = sum(prefixes.values()) + len(chosen) * max(size.own_tokens for size in chosen)
    return max_tokens is None or tokens <= max_tokens
