"""Pack records into bins of limited total length (best-fit decreasing, deterministic)."""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from ixtune.data.shared_prefixes import Prefixes
from ixtune.errors import IxtuneError

_NAMED_RECORDS = 5


def pack(lengths: Iterable[int], pack_tokens: int, prefixes: Prefixes | None = None) -> list[tuple[int, ...]]:
    """Pack records into bins of at most `pack_tokens` tokens (best-fit decreasing).

    Groups are placed largest first, each into the fullest pack with enough room. A million records take a few
    seconds: packs are grouped by the room they have left, and the groups are kept sorted.

    Args:
        lengths: Tokens of each record, image tokens included.
        pack_tokens: Maximum number of tokens in one pack.
        prefixes: Groups of records whose common prefix a pack holds once; None packs every record by itself. A group
            that exceeds a pack is split between suffixes, and each part has the prefix.

    Returns:
        Indices of records; packs by their first index. Each index occurs once. The records of a group are neighbors,
        otherwise indices ascend within a pack.

    Raises:
        IxtuneError: A record alone is longer than a pack.
    """
    tokens = list(lengths)
    _require_fit(tokens, pack_tokens)
    items = list(_items(tokens, pack_tokens, prefixes)) if prefixes else [((i,), size) for i, size in enumerate(tokens)]
    bins = _best_fit([size for _, size in items], pack_tokens)
    return sorted(
        tuple(index for item in sorted(items[number][0] for number in chosen) for index in item) for chosen in bins
    )


def packs_sha256(packs: Sequence[Sequence[int]]) -> str:
    """Return the SHA-256 of the records in each pack."""
    digest = hashlib.sha256()
    for numbers in (map(len, packs), chain.from_iterable(packs)):
        digest.update(array("q", numbers).tobytes())
    return digest.hexdigest()


def _best_fit(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Assign items to bins by best-fit decreasing; return the items of each bin."""
    rooms: list[int] = []  # the distinct free sizes of open bins, ascending
    bins_by_room: dict[int, list[list[int]]] = {}
    bins: list[list[int]] = []
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        at = bisect_left(rooms, sizes[number])
        if at == len(rooms):
            left = room
            chosen: list[int] = []
            bins.append(chosen)
        else:
            left = rooms[at]
            group = bins_by_room[left]
            chosen = group.pop()
            if not group:
                del bins_by_room[left], rooms[at]
        chosen.append(number)
        left -= sizes[number]
        if left:
            if left not in bins_by_room:
                bins_by_room[left] = []
                insort(rooms, left)
            bins_by_room[left].append(chosen)
    return bins


def _items(tokens: Sequence[int], pack_tokens: int, prefixes: Prefixes) -> Iterator[tuple[tuple[int, ...], int]]:
    """Yield the records that share a pack, with their tokens: single records, and groups or parts of groups."""
    members: defaultdict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(prefixes.group_of):
        if group < 0:
            yield (index,), pack_tokens if index in prefixes.alone else tokens[index]
        else:
            members[group].append(index)
    for group, records in members.items():
        prefix = prefixes.tokens[group]
        suffixes = [tokens[index] - prefix for index in records]
        # every part contains the prefix
        for part in _best_fit(suffixes, pack_tokens - prefix):
            yield tuple(sorted(records[at] for at in part)), prefix + sum(suffixes[at] for at in part)


def _require_fit(tokens: list[int], pack_tokens: int) -> None:
    too_long = [index for index, length in enumerate(tokens) if length > pack_tokens]
    if not too_long:
        return
    longest = max(tokens)
    notes = [f"record {index}: {tokens[index]:,} tokens" for index in too_long[:_NAMED_RECORDS]]
    if len(too_long) > _NAMED_RECORDS:
        notes.append(f"and {len(too_long) - _NAMED_RECORDS:,} more")
    raise IxtuneError(
        f"record {too_long[0]} has {tokens[too_long[0]]:,} tokens, a pack holds {pack_tokens:,}",
        hint=f"raise training.pack_tokens to {longest:,} or more, or prepare with a smaller --hd-num",
        notes=notes if len(too_long) > 1 else (),
    )
