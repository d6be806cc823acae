"""Answers of a model to prepared prompts, in batches padded on the left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers.generation.streamers import BaseStreamer

from ixtune.data.text.tokenizer import Tokenizer
from ixtune.evaluation.prompt import Prompt
from ixtune.evaluation.settings import Settings
from ixtune.model import generation


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said.

    Attributes:
        text: The answer, without white space around it.
        tokens: Tokens made, the one that ended it included.
        finish: `stop` where the model ended it, `length` where `max_new_tokens` did.
    """

    text: str
    tokens: int
    finish: Literal["stop", "length"]


class Answerer:
    """Answers prompts with one model; stops at the end of turn or of the text."""

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        images_of: Callable[[Sequence[Any]], dict[str, Any]],
        settings: Settings,
    ) -> None:
        """`images_of` turns prompts' images into the model's keyword arguments (`PictureSource.of`)."""
        self.model, self.tokenizer, self.images_of = model, tokenizer, images_of
        self.settings = settings
        self.stops = (tokenizer.eos_id, tokenizer.end_of_turn_id)

    def __call__(self, prompts: Sequence[Prompt], streamer: BaseStreamer | None = None) -> list[Answer]:
        """The answers to one batch, padded on the left; `streamer` is for a batch of one."""
        encoded = [prompt.ids(self.tokenizer, self.settings.template) for prompt in prompts]
        images = self.images_of([{"pictures": prompt.images} for prompt in prompts])
        if self.settings.do_sample:
            torch.manual_seed(self.settings.seed)
        made = generation.generate(
            self.model,
            encoded,
            images,
            stops=self.stops,
            pad_id=self.tokenizer.pad_id,
            streamer=streamer,
            **self.settings.arguments(),
        )
        return [self._answer(row) for row in made]

    def _answer(self, ids: list[int]) -> Answer:
        said, ended = generation.until_stop(ids, self.stops)
        text = self.tokenizer.decode(said).strip()
        return Answer(text, len(said) + 1, "stop") if ended else Answer(text, len(said), "length")


def batches(prompts: Sequence[Prompt], size: int) -> list[list[int]]:
    """Indices of prompts, those of similar length together."""
    order = sorted(range(len(prompts)), key=lambda i: (sum(prompts[i].image_tokens), i))
    return [order[start : start + size] for start in range(0, len(order), size)]


def answer_all(
    answerer: Answerer,
    prompts: Sequence[Prompt],
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Answers to all prompts, in order; those of similar length are answered together."""
    answers: dict[int, Answer] = {}
    for chosen in batches(prompts, batch_size):
        answers |= zip(chosen, answerer([prompts[i] for i in chosen]), strict=True)
        if progress is not None:
            progress(len(chosen))
    return [answers[index] for index in range(len(prompts))]
