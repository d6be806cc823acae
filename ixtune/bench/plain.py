"""Train the plain way: the network built from transformers' blocks, with its `Trainer` and PEFT.

It is the baseline for ixtune, so it does not change and shares none of ixtune's own blocks: transformers' Llama
norm and rotary, autograd's own SwiGLU, PLoRA by a boolean mask, sdpa with a mask over batches padded to the longest,
full logits. Weights, NF4 layers and the vision tower are those of the network it is built from, so both compute the
same. A test checks that losses agree.

Shape letters: B batch, L length, D hidden, K key/value heads, G query heads per K, d head width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, silu
from transformers import PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRMSNorm, rotate_half

from ixtune.model.cache_name import named
from ixtune.model.configuration import IXC2Config
from ixtune.model.model import IXC2ForCausalLM


class PlainLinear(nn.Module):
    """Linear of the base with its PLoRA branch at the masked positions."""

    def __init__(self, linear: nn.Module, branch: Any) -> None:
        super().__init__()
        self.linear, self.A, self.B, self.scale = linear, branch.A, branch.B, branch.scale

    def forward(self, x_BLD: torch.Tensor, image_mask_BL: torch.Tensor) -> torch.Tensor:
        """Map [B, L, D] to [B, L, out]."""
        out: torch.Tensor = self.linear(x_BLD)
        added = self.B(self.A(x_BLD[image_mask_BL])) * self.scale
        out[image_mask_BL] = out[image_mask_BL] + added.to(out.dtype)
        return out


class PlainLayer(GradientCheckpointingLayer):
    """Pre-norm attention and feed-forward."""

    wqkv: PlainLinear
    wo: PlainLinear
    w1: PlainLinear
    w2: PlainLinear
    w3: PlainLinear

    def __init__(self, config: IXC2Config, source: Any) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = source.attention.layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.is_causal = True
        self.attention_norm = _norm(config, source.attention_norm)
        self.ffn_norm = _norm(config, source.ffn_norm)
        for owner, names in ((source.attention, ("wqkv", "wo")), (source.feed_forward, ("w1", "w2", "w3"))):
            for name in names:
                setattr(self, name, PlainLinear(getattr(owner, name), getattr(owner, f"{name}_plora")))

    def forward(
        self,
        x_BLD: torch.Tensor,
        angles: tuple[torch.Tensor, torch.Tensor],
        image_mask_BL: torch.Tensor,
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Map [B, L, D] to [B, L, D]."""
        batch, length, _ = x_BLD.shape
        groups = self.num_key_value_groups
        qkv = self.wqkv(self.attention_norm(x_BLD), image_mask_BL).view(batch, length, -1, groups + 2, self.head_dim)
        query = qkv[..., :groups, :].reshape(batch, length, -1, self.head_dim).transpose(1, 2)
        key, value = qkv[..., groups, :].transpose(1, 2), qkv[..., groups + 1, :].transpose(1, 2)
        cos, sin = angles
        query, key = query * cos + rotate_half(query) * sin, key * cos + rotate_half(key) * sin
        attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
        out, _ = attend(self, query, key, value, attention_mask, dropout=0.0, scaling=self.head_dim**-0.5)
        x_BLD = x_BLD + self.wo(out.reshape(batch, length, -1).contiguous(), image_mask_BL)
        normed = self.ffn_norm(x_BLD)
        inner = silu(self.w1(normed, image_mask_BL)) * self.w3(normed, image_mask_BL)
        out_BLD: torch.Tensor = x_BLD + self.w2(inner, image_mask_BL)
        return out_BLD


class PlainIXC2(PreTrainedModel):
    """Whole network for padded batches."""

    config_class = IXC2Config
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, source: IXC2ForCausalLM) -> None:
        super().__init__(source.config)
        self.config._attn_implementation = "sdpa"
        self.tok_embeddings = source.model.tok_embeddings
        self.layers = nn.ModuleList(PlainLayer(source.config, layer) for layer in source.model.layers)
        self.norm = _norm(source.config, source.model.norm)
        self.output = source.output
        self.vit, self.separators, self.vision_proj = source.vit, source.separators, source.vision_proj
        self.image_vectors = source.get_image_vectors
        self.theta = float((source.config.rope_parameters or {}).get("rope_theta", 1_000_000.0))
        for name in ("is_loaded_in_4bit", "quantization_method"):
            if hasattr(source, name):
                setattr(self, name, getattr(source, name))

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embeddings."""
        embeddings: nn.Module = self.tok_embeddings
        return embeddings

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        crops: torch.Tensor | None = None,
        grids: Any = None,
        **_: Any,
    ) -> CausalLMOutput:
        """Return the loss of a batch padded on the right, from full logits in fp32 as transformers' own loss.

        Args:
            input_ids: [B, L], `config.image_token_id` at image positions.
            attention_mask: [B, L].
            labels: [B, L] unshifted, -100 at unsupervised positions.
            crops: uint8 [N, 3, 336, 336] of all images.
            grids: (rows, cols) of each image.
            **_: arguments that Trainer adds.
        """
        mask_BL = (input_ids == self.config.image_token_id) & attention_mask.bool()
        hidden = self.tok_embeddings(input_ids)
        if crops is not None:
            vectors = self.image_vectors(crops, grids)
            projected = self.vision_proj(vectors.to(list(self.vision_proj.parameters())[-1].dtype))
            hidden = hidden.masked_scatter(mask_BL[..., None], projected.to(hidden.dtype))
        causal = create_causal_mask(
            config=self.config, inputs_embeds=hidden, attention_mask=attention_mask, **named(None)
        )
        angles = self._angles(input_ids.shape[1], hidden)
        for layer in self.layers:
            hidden = layer(hidden, angles, mask_BL, causal)
        logits_BLV = self.output(self.norm(hidden)).float()
        flat = logits_BLV[:, :-1].reshape(-1, logits_BLV.shape[-1])
        return CausalLMOutput(loss=cross_entropy(flat, labels[:, 1:].reshape(-1), ignore_index=-100))

    def _angles(self, length: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        half = torch.arange(0, self.config.head_dim, 2).float() / self.config.head_dim
        angles = torch.arange(length).float()[:, None] / self.theta**half
        both = torch.cat((angles, angles), dim=-1)
        return both.cos().to(like), both.sin().to(like)


def _norm(config: IXC2Config, source: Any) -> LlamaRMSNorm:
    norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
    norm.weight = source.weight
    return norm
