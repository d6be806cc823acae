"""Mask the logits of a batch so that chosen rows follow a JSON grammar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
        where = torch.tensor([row for row, _ in held], device=scores.device)
        allowed_RV = allowed_tokens([state for _, state in held], scores.shape[1]).to(scores.device)
        return scores.index_copy(0, where, scores[where].masked_fill(~allowed_RV, float("-inf")))


def allowed_tokens(states: Sequence[JsonState], vocabulary: int) -> torch.Tensor:
    """Return which tokens may come next, bool [states, vocabulary]; embedding rows beyond the tokenizer are False."""
    masks = bytearray(b"".join(state.allowed() for state in states))
    bytes_RB = torch.frombuffer(masks, dtype=torch.uint8).view(len(states), -1)
    bits_RV = (bytes_RB[:, :, None] >> torch.arange(8, dtype=torch.uint8)).bitwise_and_(1).bool().flatten(1)
    missing = vocabulary - bits_RV.shape[1]
    return torch.nn.functional.pad(bits_RV, (0, max(0, missing)))[:, :vocabulary]
