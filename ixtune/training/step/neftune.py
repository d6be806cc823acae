"""NEFTune: noise on the embeddings of the text while training (arXiv 2310.05914).

transformers' version adds it to everything from the embedding table and scales it by the length of the row, so that
its size would depend on the other records of a pack.

Shape letters: B batch (1), T positions of the pack, D hidden, S segments.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn

from ixtune.model.model import IXC2ForCausalLM


def enable(model: PeftModel, alpha: float) -> None:
    """Add noise to the text positions of every pack in training mode, and nothing in evaluation mode.

    It is uniform in ±alpha / sqrt(L * D) with L the text positions of the record, so that its norm over a record is
    that of the paper with and without images, and in every pack. A prefix shared by several records gets one noise
    sample, scaled by their mean L. Noise comes from torch's generator, whose state a checkpoint keeps.
    """
    decoder = cast(IXC2ForCausalLM, model.get_base_model()).model
    decoder.register_forward_pre_hook(partial(_add_noise, alpha), with_kwargs=True)


def _add_noise(
    alpha: float, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Return the decoder's arguments with noise added to the embeddings."""
    if not decoder.training:
        return None
    embeds_BTD = args[0]
    _, length, width = embeds_BTD.shape
    device = embeds_BTD.device
    text_T = torch.ones(length, device=device)
    if (rows := kwargs.get("image_rows_I")) is not None:
        text_T[rows] = 0
    ends_S = kwargs["cu_seq_lens_q"][1:]
    segment_T = torch.bucketize(torch.arange(length, device=device), ends_S, right=True)
    counts_S = torch.zeros(len(ends_S), device=device).index_add_(0, segment_T, text_T)
    if (parents := kwargs.get("parents")) is not None:
        counts_S = _of_records(counts_S, torch.tensor(parents, device=device))
    size_T = text_T * alpha / (counts_S.clamp(min=1) * width).sqrt()[segment_T]
    noise_BTD = torch.empty(embeds_BTD.shape, device=device).uniform_(-1, 1) * size_T[:, None]
    return (embeds_BTD + noise_BTD.to(embeds_BTD.dtype), *args[1:]), kwargs


def _of_records(counts_S: torch.Tensor, parents_S: torch.Tensor) -> torch.Tensor:
    """Return the text positions of the records that segments belong to; of a shared prefix, their mean."""
    children = (parents_S >= 0).nonzero().squeeze(1)
    theirs = parents_S[children]
    of_child = counts_S[children] + counts_S[theirs]
    number_S = torch.zeros_like(counts_S).index_add_(0, theirs, torch.ones_like(of_child))
    mean_S = torch.zeros_like(counts_S).index_add_(0, theirs, of_child) / number_S.clamp(min=1)
    return torch.where(number_S > 0, mean_S, counts_S).index_copy_(0, children, of_child)
