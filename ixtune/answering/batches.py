"""Put questions about the same images into the same batch, and batches about the same images into the same process."""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

_ROW_TOKENS = 64  # for a question and its answer, whose tokens may not be known


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


def shares(made: Sequence[list[int]], sizes: Sequence[Size], processes: int) -> list[list[list[int]]]:
    """Distribute batches over processes: those with a common prefix together, and about equal numbers of tokens.

    Batches themselves do not depend on the number of processes, so that sums and answers do not.

    Args:
        made: The batches, from `batches`.
        sizes: Of all prompts.
        processes: Number of processes.

    Returns:
        The batches of each process, in order. A run of batches with a common prefix is cut only where it is more than
        one process's share.
    """
    costs = [_tokens([sizes[at] for at in batch]) + _ROW_TOKENS * len(batch) for batch in made]
    most = math.ceil(sum(costs) / processes)
    runs: list[list[int]] = []
    for number, batch in enumerate(made):
        before = sizes[made[number - 1][-1]].prefix if number else None
        joined = before is not None and before == sizes[batch[0]].prefix
        if joined and sum(costs[at] for at in runs[-1]) + costs[number] <= most:
            runs[-1].append(number)
        else:
            runs.append([number])
    loads = [(0, process) for process in range(processes)]
    numbers: list[list[int]] = [[] for _ in range(processes)]
    for run in sorted(runs, key=lambda run: (-sum(costs[at] for at in run), run)):
        load, process = heapq.heappop(loads)
        numbers[process] += run
        heapq.heappush(loads, (load + sum(costs[at] for at in run), process))
    return [[made[number] for number in sorted(of_one)] for of_one in numbers]


def _fits(chosen: Sequence[Size], max_rows: int | None, max_tokens: int | None) -> bool:
    if max_rows is not None and len(chosen) > max_rows:
        return False
    return max_tokens is None or _tokens(chosen) <= max_tokens


def _tokens(chosen: Sequence[Size]) -> int:
    """Return the tokens of a batch: each prefix once, own tokens padded to the longest."""
    prefixes = {size.prefix: size.prefix_tokens for size in chosen}
    return sum(prefixes.values()) + len(chosen) * max(size.own_tokens for size in chosen)
