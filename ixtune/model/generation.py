"""Answers to prompts of different lengths at once: padded on the left, and cut where the model ended them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    images: Mapping[str, Any],
    *,
    stops: Collection[int],
    pad_id: int,
    streamer: BaseStreamer | None = None,
    **settings: Any,
) -> list[list[int]]:
    """What a model says to each prompt, as token ids.

    The mode of the model and autocast are the caller's business; no gradient is kept.

    Args:
        model: the network, bare or with an adapter.
        prompts: token ids of each, the image token's at image positions.
        images: the images of all prompts in order, as the model's keyword arguments (see `IXC2ForCausalLM.embed`).
        stops: tokens that end an answer.
        pad_id: any token; it is masked.
        streamer: gets the tokens as they are made; for a single prompt.
        **settings: of transformers' GenerationConfig.

    Returns:
        the new ids of each prompt, equally many: behind a stop there is padding, see `until_stop`.
    """
    longest = max(len(prompt) for prompt in prompts)
    device = next(model.parameters()).device
    ids_BL = torch.tensor([[pad_id] * (longest - len(row)) + [*row] for row in prompts], device=device)
    mask_BL = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts], device=device)
    there = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in images.items()}
    with torch.no_grad():
        out = model.generate(
            input_ids=ids_BL,
            attention_mask=mask_BL,
            eos_token_id=list(stops),
            pad_token_id=pad_id,
            streamer=streamer,
            use_cache=True,
            **settings,
            **there,
        )
    made: list[list[int]] = out[:, longest:].tolist()
    return made


def until_stop(ids: Sequence[int], stops: Collection[int]) -> tuple[Sequence[int], bool]:
    """An answer without the token that ended it and what follows, and whether there was one."""
    end = next((at for at, token in enumerate(ids) if token in stops), None)
    return (ids, False) if end is None else (ids[:end], True)
