"""Records -> packs of known total length: best-fit decreasing bin packing, without any randomness."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

from ixtune.errors import IxtuneError

_NAMED_RECORDS = 5


def pack(lengths: Iterable[int], pack_tokens: int) -> list[tuple[int, ...]]:
    """Put records into as few packs of at most `pack_tokens` tokens as best-fit decreasing finds.

    Longest first, each record goes into the fullest pack that still has room. A million records take a few
    seconds: packs are grouped by the room they have left, and the groups are kept sorted.

    Args:
        lengths: Tokens of each record, image tokens included.
        pack_tokens: Most tokens in one pack.

    Returns:
        Indices of records, ascending within a pack; packs by their first index. Each index occurs once.

    Raises:
        IxtuneError: A record alone is longer than a pack.
    """
    tokens = list(lengths)
    _require_fit(tokens, pack_tokens)
    rooms: list[int] = []  # the distinct free sizes of open packs, ascending
    packs_by_room: dict[int, list[list[int]]] = {}
    packs: list[list[int]] = []
    for index in sorted(range(len(tokens)), key=lambda index: -tokens[index]):
        at = bisect_left(rooms, tokens[index])
        if at == len(rooms):
            room = pack_tokens
            chosen: list[int] = []
            packs.append(chosen)
        else:
            room = rooms[at]
            group = packs_by_room[room]
            chosen = group.pop()
            if not group:
                del packs_by_room[room], rooms[at]
        chosen.append(index)
        room -= tokens[index]
        if room:
            if room not in packs_by_room:
                packs_by_room[room] = []
                insort(rooms, room)
            packs_by_room[room].append(chosen)
    return sorted(tuple(sorted(chosen)) for chosen in packs)


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
