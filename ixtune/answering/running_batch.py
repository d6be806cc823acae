"""Generate for rows that join and leave a running batch; each row has its own prefix, sampler and length.

Shape letters: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ixtune.answering.sampler import Sampler, TokenScores
from ixtune.model.shared_prefix import Prefix, SharedPrefixCache


@dataclass(eq=False)
class Row:
    """An answer being generated.

    Attributes:
        prompt: Token ids, the image token's at image positions.
        prefix: Computed beginning of the prompt, with all its images; None for a prompt without images.
        sampler: Chooses its tokens.
        ids: Tokens generated so far.
        scores: Log-probabilities of each, where the sampler keeps them.
    """

    prompt: Sequence[int]
    prefix: Prefix | None
    sampler: Sampler
    ids: list[int] = field(default_factory=list)
    scores: list[TokenScores] = field(default_factory=list)

    @property
    def own_tokens(self) -> int:
        """Number of prompt tokens after the prefix."""
        return len(self.prompt) - (self.prefix.length if self.prefix else 0)


class RunningBatch:
    """Rows that are generated together; the caller controls the model's mode and autocast.

    Attributes:
        rows: The rows, those with the same prefix next to each other.
    """

    def __init__(self, model: Any, pad_id: int) -> None:
        """Start without a row.

        Args:
            model: The network, bare or with an adapter.
            pad_id: Any token; it is masked.
        """
        self.model, self.pad_id = model, pad_id
        self.rows: list[Row] = []
        self._cache: SharedPrefixCache | None = None

    @torch.no_grad()
    def join(self, rows: Sequence[Row]) -> None:
        """Compute the prompts of new rows after their prefixes, and choose the first token of each."""
        new = sorted(rows, key=lambda row: id(row.prefix))
        own = [row.own_tokens for row in new]
        cache = SharedPrefixCache([row.prefix for row in new], own, max(own))
        ids, positions = [], []
        for row, count in zip(new, own, strict=True):
            padding = max(own) - count
            start = len(row.prompt) - count
            ids.append([self.pad_id] * padding + list(row.prompt[start:]))
            positions.append([0] * padding + list(range(start, len(row.prompt))))
        self._choose(new, self._logits(ids, positions, cache))
        if self._cache is None:
            self.rows, self._cache = new, cache
            return
        self._cache.join(cache)
        together = [*self.rows, *new]
        order = sorted(range(len(together)), key=lambda at: id(together[at].prefix))
        self._cache.select(order)
        self.rows = [together[at] for at in order]

    @torch.no_grad()
    def step(self) -> None:
        """Add one token to every row."""
        assert self._cache is not None
        ids = [[row.ids[-1]] for row in self.rows]
        positions = [[len(row.prompt) + len(row.ids) - 1] for row in self.rows]
        self._choose(self.rows, self._logits(ids, positions, self._cache))

    def leave(self, rows: Sequence[Row]) -> None:
        """Remove rows from the batch."""
        gone = set(map(id, rows))
        kept = [at for at, row in enumerate(self.rows) if id(row) not in gone]
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[at] for at in kept]
        if not self.rows:
            self._cache = None
        elif self._cache is not None:
            self._cache.select(kept)

    def _logits(self, ids: list[list[int]], positions: list[list[int]], cache: SharedPrefixCache) -> torch.Tensor:
        """Return the logits [B, V] of the last column."""
        device = next(self.model.parameters()).device
        out = self.model(
            input_ids=torch.tensor(ids, device=device),
            position_ids=torch.tensor(positions, device=device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = out.logits[:, -1]
        return logits

    def _choose(self, rows: Sequence[Row], logits_BV: torch.Tensor) -> None:
        greedy = logits_BV.argmax(-1).tolist()  # one transfer for all rows that need no more than this
        for at, row in enumerate(rows):
            if row.sampler.is_plain:
                row.ids.append(greedy[at])
                continue
            token, scores = row.sampler.choose(row.prompt, row.ids, logits_BV[at])
            row.ids.append(token)
            if scores is not None:
                row.scores.append(scores)
