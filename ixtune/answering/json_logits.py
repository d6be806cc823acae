"""Mask the logits of a batch so that chosen rows follow a JSON grammar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor

from ixtune.answering.json_schema import JsonGrammar, JsonState


class JsonLogits(LogitsProcessor):
    """Logits processor for one call of `generate`, greedy or sampling; beams are refused, since they exchange rows."""

    def __init__(self, grammars: Sequence[JsonGrammar | None]) -> None:
        """Start an answer in each row.

        Args:
            grammars: Grammar of each row; None for an unconstrained row.
        """
        self.states = [None if grammar is None else grammar.start() for grammar in grammars]
        self._seen: int | None = None  # length of prompts and tokens so far

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> Any:
        """Return the scores with -inf for each token that a row's grammar does not allow.

        Args:
            input_ids: Prompts and tokens so far, [rows, length].
            scores: Logits of the next token, [rows, vocabulary].

        Raises:
            ValueError: The number of rows has changed, as with beams, or a row violates its grammar.
        """
        rows, length = input_ids.shape
        if rows != len(self.states):
            raise ValueError(
                f"{rows} rows for {len(self.states)} answers: beams cannot be constrained to a JSON schema"
            )
        held = [(row, state) for row, state in enumerate(self.states) if state is not None]
        if self._seen is not None:
            new = input_ids[:, self._seen :].tolist()
            for row, state in held:
                for token in new[row]:
                    state.accept(token)
        self._seen = length
        held = [(row, state) for row, state in held if not state.ended]
        if not held:
            return scores
        allowed_RV = torch.ones(scores.shape, dtype=torch.bool)
        allowed_RV[[row for row, _ in held]] = allowed_tokens([state for _, state in held], scores.shape[1])
        return scores.masked_fill(~allowed_RV.to(scores.device), float("-inf"))


def allowed_tokens(states: Sequence[JsonState], vocabulary: int) -> torch.Tensor:
    """Return which tokens may come next, bool [states, vocabulary]; embedding rows beyond the tokenizer are False."""
    masks_RB = np.frombuffer(b"".join(state.allowed() for state in states), np.uint8).reshape(len(states), -1)
    # by numpy: with torch's shifts, a step of eight rows and 92,544 pieces took 5.3 instead of 2.4 ms of a CPU
    bits_RV = np.unpackbits(masks_RB, axis=1, count=vocabulary, bitorder="little")
    return torch.from_numpy(bits_RV.view(np.bool_))
