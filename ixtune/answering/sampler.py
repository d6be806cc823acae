"""Choose the next token of one answer: greedy, or sampled with its own seed, independent of the rest of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ixtune.answering.settings import Settings


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Log-probabilities at one position, of the model's own distribution before temperature and other settings.

    Attributes:
        token: The chosen token.
        logprob: Its log-probability.
        top: The most likely tokens with their log-probabilities, in descending order.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Sampler:
    """Chooses the tokens of one answer.

    Attributes:
        is_plain: The most likely token is chosen and nothing else is needed, so a whole batch can be done in one call.
    """

    def __init__(
        self, settings: Settings, seed: int, top_logprobs: int | None = None, constraint: LogitsProcessor | None = None
    ) -> None:
        """Prepare to choose.

        Args:
            settings: Generation settings; their seed is not used.
            seed: Random seed of this answer.
            top_logprobs: Keep log-probabilities, and of this number of most likely tokens; None for none.
            constraint: Masks the tokens that may not come next, such as those that would break a JSON schema.
        """
        processors = LogitsProcessorList()
        if settings.repetition_penalty != 1.0:
            processors.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
        if constraint is not None:
            processors.append(constraint)
        if settings.do_sample:
            processors.append(TemperatureLogitsWarper(settings.temperature))
            if settings.top_k:
                processors.append(TopKLogitsWarper(settings.top_k))
            if settings.top_p < 1.0:
                processors.append(TopPLogitsWarper(settings.top_p))
        self._processors, self._sample, self._top = processors, settings.do_sample, top_logprobs
        self._generator = torch.Generator().manual_seed(seed)
        self.is_plain = not processors and not settings.do_sample and top_logprobs is None

    def choose(
        self, prompt: Sequence[int], ids: Sequence[int], logits_V: torch.Tensor
    ) -> tuple[int, TokenScores | None]:
        """Return the next token and, where they are kept, its log-probabilities.

        Args:
            prompt: Token ids of the prompt.
            ids: Token ids generated so far.
            logits_V: Logits of the next token.
        """
        scores_1V = logits_V.float()[None]
        if self._processors:
            so_far: Any = torch.tensor([[*prompt, *ids]], device=scores_1V.device)  # transformers requires LongTensor
            scores_1V = self._processors(so_far, scores_1V.clone())
        if self._sample:
            # on the CPU, so that a seed gives the same answer with any device
            token = int(torch.multinomial(scores_1V[0].softmax(-1).cpu(), 1, generator=self._generator))
        else:
            token = int(scores_1V[0].argmax())
        return token, None if self._top is None else _scores(logits_V, token, self._top)


def _scores(logits_V: torch.Tensor, token: int, top: int) -> TokenScores:
    logprobs_V = logits_V.float().log_softmax(-1)
    best = logprobs_V.topk(top)
    ranked = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return TokenScores(token, float(logprobs_V[token]), ranked)
