"""Generate from prompts of different lengths in one batch: pad on the left, cut at each end-of-sequence token."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from ixtune.model.cache_name import named
from ixtune.model.shared_prefix import Prefix, SharedPrefixCache


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    prefixes: Sequence[Prefix | None],
    *,
    stops: Collection[int],
    pad_id: int,
    streamer: BaseStreamer | None = None,
    **settings: Any,
) -> list[list[int]]:
    """Return the answer to each prompt as token ids.

    The caller sets the model's mode and autocast; no gradient is kept.

    Args:
        model: The network, bare or with an adapter.
        prompts: Token ids of each, the image token's at image positions.
        prefixes: Computed beginning of each prompt, with all its images; None for a prompt without images.
        stops: Tokens that end an answer.
        pad_id: Any token; it is masked.
        streamer: Receives the tokens as they are generated; for a single prompt.
        **settings: Settings of transformers' GenerationConfig.

    Returns:
        The new ids of each prompt, all of one length: after a stop there is padding, see `until_stop`.
    """
    longest = max(len(prompt) for prompt in prompts)
    device = next(model.parameters()).device
    ids_BL = torch.tensor([[pad_id] * (longest - len(row)) + [*row] for row in prompts], device=device)
    mask_BL = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts], device=device)
    cache = None
    if any(prefixes):
        own = [len(row) - (prefix.length if prefix else 0) for row, prefix in zip(prompts, prefixes, strict=True)]
        cache = SharedPrefixCache(prefixes, own, longest)
    with torch.no_grad():
        out = model.generate(
            input_ids=ids_BL,
            attention_mask=mask_BL,
            eos_token_id=list(stops),
            pad_token_id=pad_id,
            streamer=streamer,
            use_cache=True,
            **named(cache),
            **settings,
        )
    made: list[list[int]] = out[:, longest:].tolist()
    return made


def until_stop(ids: Sequence[int], stops: Collection[int]) -> tuple[Sequence[int], bool]:
    """Return an answer up to the token that ended it, and whether there was one."""
    end = next((at for at, token in enumerate(ids) if token in stops), None)
    return (ids, False) if end is None else (ids[:end], True)
