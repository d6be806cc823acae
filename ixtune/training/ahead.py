"""Batches made before they are asked for: while a GPU computes a pack, threads decode the pictures of the next ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from datasets import Dataset

from ixtune.training.batch import Batch, PackCollator

Pack = tuple[int, ...]

PACKS = 3
"""Packs that are made at a time, the one that is asked for next among them; of a page of 4K each holds 18 MB."""


class Ahead:
    """What makes batches, and begins with those that are expected.

    What comes out, errors included, is what making them in turn gives: threads only begin earlier.
    """

    def __init__(self, make: Callable[[Pack], Batch], threads: int = PACKS) -> None:
        """Begin nothing yet.

        Args:
            make: a pack's records -> its batch; called in threads.
            threads: how many work.
        """
        self._make = make
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="pictures")
        self._begun: dict[Pack, Future[Batch]] = {}

    def expect(self, packs: Iterable[Pack]) -> None:
        """Begin with these, in order, and forget all others: a resumed run runs past packs that it does not take."""
        expected = dict.fromkeys(packs)
        for pack in self._begun.keys() - expected.keys():
            self._begun.pop(pack).cancel()
        for pack in expected:
            if pack not in self._begun:
                self._begun[pack] = self._threads.submit(self._make, pack)

    def take(self, pack: Pack) -> Batch:
        """The batch of a pack, expected or not.

        Raises:
            IxtuneError: what making it raised.
        """
        begun = self._begun.pop(pack, None)
        return begun.result() if begun else self._make(pack)


def announcer(
    collator: PackCollator, packs: Dataset, rank: int, processes: int
) -> Callable[[Sequence[int], int], None]:
    """Let a collator take what was begun, and give what a sampler tells its order to.

    Args:
        collator: of this process.
        packs: as `pack_dataset` gives them.
        rank: which process this is.
        processes: how many there are; packs are dealt out to them in turn.

    Returns:
        A function of the order of an epoch and the place in it that comes next.
    """
    ahead = Ahead(collator.make)
    collator.take = ahead.take

    def announced(order: Sequence[int], at: int) -> None:
        first = at + (rank - at) % processes
        mine = (tuple(packs[order[place]]["records"]) for place in range(first, len(order), processes))
        ahead.expect(islice(filter(None, mine), PACKS))

    return announced
