"""Build OpenAI's response objects from the pieces of an answer."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Sequence
from typing import Any

from ixtune.answering.sampler import TokenScores
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.serving.engine.job import Piece
from ixtune.serving.prompts import Asked

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Responses:
    """Objects of one request, with one id and time of creation."""

    def __init__(self, asked: Asked, tokenizer: Tokenizer) -> None:
        self.asked, self.tokenizer = asked, tokenizer
        self.id = f"chatcmpl-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self._tokens = [0] * asked.choices
        self._texts: list[list[str]] = [[] for _ in range(asked.choices)]
        self._scores: list[list[TokenScores]] = [[] for _ in range(asked.choices)]
        self._finish: list[str | None] = [None] * asked.choices
        self._cached = 0

    @property
    def finished(self) -> bool:
        """Whether all answers have ended."""
        return all(self._finish)

    @property
    def tokens(self) -> int:
        """Tokens generated so far, of all answers."""
        return sum(self._tokens)

    def add(self, piece: Piece) -> None:
        """Add a piece."""
        at = piece.choice
        self._tokens[at], self._cached = piece.tokens, piece.cached_tokens
        self._texts[at].append(piece.text)
        self._scores[at] += piece.scores
        self._finish[at] = piece.finish or self._finish[at]

    def whole(self) -> dict[str, Any]:
        """Return the `chat.completion` object."""
        choices = [
            {
                "index": at,
                "message": {"role": "assistant", "content": "".join(texts), "refusal": None},
                "finish_reason": finish,
                "logprobs": self._logprobs(scores),
            }
            for at, (texts, finish, scores) in enumerate(zip(self._texts, self._finish, self._scores, strict=True))
        ]
        return self._head("chat.completion") | {"choices": choices, "usage": self.usage()}

    def opening(self, choice: int) -> dict[str, Any]:
        """Return the first chunk of an answer."""
        return self._chunk(choice, {"role": "assistant", "content": ""})

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """Return the chunk of a piece: its text and log-probabilities."""
        return self._chunk(
            piece.choice, {"content": piece.text} if piece.text else {}, None, self._logprobs(piece.scores)
        )

    def closing(self, piece: Piece) -> dict[str, Any]:
        """Return the last chunk of an answer."""
        return self._chunk(piece.choice, {}, piece.finish)

    def usage_chunk(self) -> dict[str, Any]:
        """Return the chunk with the usage, sent after all answers."""
        return self._head("chat.completion.chunk") | {"choices": [], "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        """Return the token counts; image tokens are part of the prompt's."""
        prompt = len(self.asked.ids)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.tokens,
            "total_tokens": prompt + self.tokens,
            "prompt_tokens_details": {"image_tokens": self.asked.image_tokens, "cached_tokens": self._cached},
        }

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.asked.model.name}

    def _chunk(
        self, choice: int, delta: dict[str, Any], finish: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        made = {"index": choice, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
        return self._head("chat.completion.chunk") | {"choices": [made]}

    def _logprobs(self, scores: Sequence[TokenScores]) -> dict[str, Any] | None:
        if self.asked.top_logprobs is None:
            return None
        content = [
            self._token(one.token, one.logprob) | {"top_logprobs": [self._token(*other) for other in one.top]}
            for one in scores
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        piece = self.tokenizer.piece(token)
        byte = _BYTE.fullmatch(piece)
        text = piece.replace("▁", " ")
        in_bytes = [int(byte[1], 16)] if byte else list(text.encode())
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": in_bytes}
