"""Greedy answers of a model to prepared prompts, in batches padded on the left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ixtune.data.record import Turn
from ixtune.data.template import encode_prompt, expand
from ixtune.data.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Prompt:
    """Turns up to and including a user turn, and the prepared pictures they show."""

    turns: tuple[Turn, ...]
    pictures: tuple[dict[str, Any], ...]  # as the prepared set stores them: root, path, tokens, the layout

    @property
    def picture_tokens(self) -> tuple[int, ...]:
        """Image tokens of each picture."""
        return tuple(picture["tokens"] for picture in self.pictures)

    @property
    def paths(self) -> tuple[tuple[int, str], ...]:
        """Which pictures these are: the image root's index and the path of each."""
        return tuple((picture["root"], picture["path"]) for picture in self.pictures)


class Answerer:
    """Answers prompts with one model.

    The template is the training one: no system prompt, one BOS, stop at the end of turn or of the text.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        images_of: Callable[[Sequence[Any]], dict[str, Any]],
        max_new_tokens: int,
    ) -> None:
        """`images_of` turns prompts' pictures into the model's keyword arguments (`PictureSource.of`)."""
        self.model, self.tokenizer, self.images_of = model, tokenizer, images_of
        self.max_new_tokens = max_new_tokens

    def __call__(self, prompts: Sequence[Prompt]) -> list[str]:
        """The answers to one batch, padded on the left."""
        encoded = [expand(encode_prompt(p.turns, p.picture_tokens, self.tokenizer))[0] for p in prompts]
        longest = max(len(ids) for ids in encoded)
        pad = self.tokenizer.pad_id
        device = next(self.model.parameters()).device
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in encoded], device=device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in encoded], device=device)
        images = self.images_of([{"pictures": prompt.pictures} for prompt in prompts])
        images = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in images.items()}
        with torch.no_grad():
            out = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                eos_token_id=[self.tokenizer.eos_id, self.tokenizer.end_of_turn_id],
                pad_token_id=pad,
                **images,
            )
        return [self._text(row) for row in out[:, longest:].tolist()]

    def _text(self, ids: list[int]) -> str:
        stops = (self.tokenizer.eos_id, self.tokenizer.end_of_turn_id)
        end = next((at for at, token in enumerate(ids) if token in stops), len(ids))
        return self.tokenizer.decode(ids[:end]).strip()


def answer_all(
    answerer: Answerer,
    prompts: Sequence[Prompt],
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Answers to all prompts, in order; prompts of similar length share a batch."""
    order = sorted(range(len(prompts)), key=lambda i: sum(prompts[i].picture_tokens))
    answers = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        for index, answer in zip(chosen, answerer([prompts[i] for i in chosen]), strict=True):
            answers[index] = answer
        if progress is not None:
            progress(len(chosen))
    return answers
