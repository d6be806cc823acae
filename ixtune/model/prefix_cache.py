"""Cache prompt prefixes within a memory bound: keys and values of an image are computed for its first question only."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from ixtune.model.shared_prefix import Prefix, compute_prefix

Load = Callable[[int], Mapping[str, Any]]
"""Return the images of a prompt from a given one on, as the model's keyword arguments."""


def prefix_length(ids: Sequence[int], image_token_id: int) -> int:
    """Return the number of tokens up to and including the last image position; 0 without an image."""
    return next((at for at in range(len(ids), 0, -1) if ids[at - 1] == image_token_id), 0)


def is_stretched(model: Any, prompt_tokens: int) -> bool:
    """Return whether a prompt is so long that dynamic rotary scaling changes the angles of all its positions."""
    above: int | None = model.config.sizes.dynamic_above
    return above is not None and prompt_tokens > above


class PrefixCache:
    """Keys and values by token ids and images, the least recently used dropped first.

    Attributes:
        computed: Number of prefixes computed.
        reused: Number of times that a prefix was found.
        peak_bytes: Largest size so far, with the prefixes of the running batch.
    """

    def __init__(self, max_bytes: int, *, continues: bool = False) -> None:
        """Start empty.

        Args:
            max_bytes: Bound of what is kept; the prefix that was computed last is kept in any case.
            continues: Continue a kept prefix that a longer one begins with, as conversations need it. The longer one
                then differs in the last bits from one computed at once, depending on what happens to be kept.
        """
        self.max_bytes, self.continues = max_bytes, continues
        self.computed = self.reused = self.peak_bytes = 0
        self._kept: OrderedDict[tuple[Hashable, tuple[int, ...], tuple[Hashable, ...]], Prefix] = OrderedDict()

    def get(
        self,
        model: Any,
        ids: Sequence[int],
        images: Sequence[Hashable],
        load: Load,
        variant: Hashable = None,
        prompt_tokens: int = 0,
    ) -> Prefix:
        """Return the keys and values of a prefix, from the cache where they are in it.

        With dynamic rotary scaling, the keys of a long prompt depend on its length: its prefix is not kept.

        Args:
            model: The network, bare or with an adapter.
            ids: Token ids of the prefix.
            images: Keys of the images, in order: content, layout and corrections of each.
            load: Returns their crops or vectors.
            variant: Key of the weights in use, such as the name of the active adapter.
            prompt_tokens: Length of the whole prompt.
        """
        if is_stretched(model, prompt_tokens):
            self.computed += 1
            return compute_prefix(model, ids, load(0), sequence_tokens=prompt_tokens)
        key = (variant, tuple(ids), tuple(images))
        if key in self._kept:
            self.reused += 1
            self._kept.move_to_end(key)
            return self._kept[key]
        start, known = self._longest_start(*key) if self.continues else (None, 0)
        made = compute_prefix(model, ids, load(known), start)
        self.computed += 1
        self._kept[key] = made
        while len(self._kept) > 1 and self.nbytes > self.max_bytes:
            self._kept.popitem(last=False)
        self.peak_bytes = max(self.peak_bytes, self.nbytes)
        return made

    def has(self, ids: Sequence[int], images: Sequence[Hashable], variant: Hashable = None) -> bool:
        """Return whether `get` would find a prefix without computing anything."""
        return (variant, tuple(ids), tuple(images)) in self._kept

    def count_in_use(self, prefixes: Iterable[Prefix | None]) -> None:
        """Count the prefixes of a batch in `peak_bytes`, also those that are not kept any more."""
        held = {id(prefix): prefix.nbytes for prefix in (*self._kept.values(), *prefixes) if prefix is not None}
        self.peak_bytes = max(self.peak_bytes, sum(held.values()))

    @property
    def nbytes(self) -> int:
        """Bytes of all kept keys and values."""
        return sum(prefix.nbytes for prefix in self._kept.values())

    def _longest_start(
        self, variant: Hashable, ids: tuple[int, ...], images: tuple[Hashable, ...]
    ) -> tuple[Prefix | None, int]:
        """Return the longest kept prefix that this one begins with, and its number of images."""
        found: tuple[Prefix | None, int] = (None, 0)
        for (of, start, shown), prefix in self._kept.items():
            longer = found[0] is None or prefix.length > found[0].length
            if of == variant and longer and images[: len(shown)] == shown and ids[: len(start)] == start:
                found = (prefix, len(shown))
        return found
