"""Order of the packs of an epoch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from torch.utils.data import Sampler


class EpochPermutation(Sampler[int]):
    """Shuffle the packs of an epoch by seed and epoch only, so that a resumed run repeats the order.

    Empty packs, which fill up the last step of several processes, stay at the end.
    """

    def __init__(
        self,
        packs: int,
        seed: int,
        fillers: int = 0,
        announced: Callable[[Sequence[int]], None] = lambda order: None,
    ) -> None:
        """Shuffle `packs` packs and keep `fillers` empty ones at the end; `announced` receives each epoch's order."""
        self.packs, self.fillers, self.seed, self.epoch = packs, fillers, seed, 0
        self.announced = announced

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; accelerate's loader calls this at the start of each."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.packs + self.fillers

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.packs))
        random.Random(f"{self.seed} {self.epoch}").shuffle(order)
        order += range(self.packs, len(self))
        self.announced(order)
        return iter(order)
