"""Answers of a model to prepared prompts, in batches padded on the left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from transformers.generation.streamers import BaseStreamer

from ixtune.data.tokenizer import Tokenizer
from ixtune.errors import UsageError
from ixtune.evaluation.prompt import Prompt, Template
from ixtune.model import generation


@dataclass(frozen=True, slots=True)
class Settings:
    """How answers are made; names and meanings are those of transformers' GenerationConfig.

    Attributes:
        max_new_tokens: Longest answer.
        do_sample: Draw tokens; otherwise the likeliest is taken.
        temperature: Divides the logits. Of sampling.
        top_p: Smallest set of tokens with this probability. Of sampling.
        top_k: So many likeliest tokens; 0 for all. Of sampling.
        repetition_penalty: Divides the logits of tokens that were there, the prompt's included; 1 for none.
        seed: Of sampling; the same batch is answered the same way again.
        template: Which ids the question becomes.
    """

    max_new_tokens: int = 256
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0
    template: Template = "training"

    def __post_init__(self) -> None:
        """Refuse what transformers would take for something else.

        Raises:
            UsageError: an option is out of its range, or one of sampling is given without sampling.
        """
        for name, value, low, high in (
            ("temperature", self.temperature, 0.0, float("inf")),
            ("top_p", self.top_p, 0.0, 1.0),
            ("repetition_penalty", self.repetition_penalty, 0.0, float("inf")),
        ):
            if not low < value <= high:
                raise UsageError(
                    f"{name} is {value}", where=_option(name), mend=f"give more than {low:g}, at most {high:g}"
                )
        given = {"temperature": self.temperature != 1.0, "top_p": self.top_p != 1.0, "top_k": self.top_k != 0}
        changed = [name for name, value in given.items() if value]
        if changed and not self.do_sample:
            raise UsageError(
                f"{_option(changed[0])} has no effect on greedy answers",
                mend="add --do-sample to draw answers, or leave it out",
            )

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `generate`."""
        values = asdict(self)
        del values["seed"], values["template"]
        if not self.do_sample:
            for name in ("temperature", "top_p", "top_k"):  # transformers warns of them
                del values[name]
        if self.repetition_penalty == 1.0:
            del values["repetition_penalty"]
        return values


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
        """`images_of` turns prompts' pictures into the model's keyword arguments (`PictureSource.of`)."""
        self.model, self.tokenizer, self.images_of = model, tokenizer, images_of
        self.settings = settings
        self.stops = (tokenizer.eos_id, tokenizer.end_of_turn_id)

    def __call__(self, prompts: Sequence[Prompt], streamer: BaseStreamer | None = None) -> list[Answer]:
        """The answers to one batch, padded on the left; `streamer` is for a batch of one."""
        encoded = [prompt.ids(self.tokenizer, self.settings.template) for prompt in prompts]
        images = self.images_of([{"pictures": prompt.pictures} for prompt in prompts])
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
    order = sorted(range(len(prompts)), key=lambda i: (sum(prompts[i].picture_tokens), i))
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


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
