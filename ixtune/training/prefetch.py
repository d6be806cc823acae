"""Prefetch batches: while a GPU computes, threads decode the images of the next packs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from ixtune.training.batch import Batch

Pack = tuple[int, ...]

THREADS = 3


class Prefetcher:
    """Build batches, starting the next ones in threads.

    Results, including errors, are those of building batches one after the other: threads only start earlier. Nothing
    starts before a pack is taken, so that a resumed run, which skips its first packs, decodes none of them.
    """

    def __init__(self, make: Callable[[Pack], Batch], packs: int) -> None:
        """Start no work yet.

        Args:
            make: a pack's records -> its batch; called in threads.
            packs: number of packs to prefetch; a pack with a 4K page takes 18 MB. transformers takes all packs of an
                optimizer step before it computes the first, so fewer than that would leave the GPU waiting.
        """
        self._make, self._packs = make, packs
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="pictures")
        self._begun: dict[Pack, Future[Batch]] = {}
        self._order: list[Pack] = []
        self._next = 0

    def follow(self, order: Sequence[Pack]) -> None:
        """Set the packs of an epoch in the order in which they will be taken."""
        self._forget(())
        self._order, self._next = list(order), 0

    def take(self, pack: Pack) -> Batch:
        """Return the batch of a pack, in the announced order or not.

        Raises:
            IxtuneError: Error raised while making the batch.
        """
        begun = self._begun.pop(pack, None)
        if pack in self._order[self._next :]:
            self._next = self._order.index(pack, self._next) + 1
            following = self._order[self._next : self._next + self._packs]
            self._forget(following)
            for other in following:
                if other not in self._begun:
                    self._begun[other] = self._threads.submit(self._make, other)
        return begun.result() if begun else self._make(pack)

    def close(self) -> None:
        """Start no more work; work in progress ends by itself and is dropped."""
        self.follow(())
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _forget(self, but: Sequence[Pack]) -> None:
        for pack in self._begun.keys() - set(but):
            self._begun.pop(pack).cancel()
