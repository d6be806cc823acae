"""InternLM2 decoder with a PLoRA branch next to each of its five linears.

Shape letters: B batch, L length, D hidden, H query heads, K key/value heads, G query heads per K, d head width,
T = B*L, I image positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer

from ixtune.model.attention import FLEX, attention_of, family_mask
from ixtune.model.cache_name import named
from ixtune.model.configuration import IXC2Config
from ixtune.model.low_memory import gated, heads, rms_norm
from ixtune.model.plora import ImageRows, PLoRA, apply
from ixtune.model.shared_prefix import SharedPrefixCache


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in fp32, cast, then weighted (MODEL.md 5)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """Return the normed [B, L, D] in the dtype of the input."""
        return rms_norm(x_BLD, self.weight, self.eps)


class Rotary(nn.Module):
    """Rotary position angles.

    It owns no buffer: frequencies are computed where they are used, so that nothing can be left uninitialized by
    loading through the meta device or be rounded by a cast of the model (TRAPS.md 18).
    """

    def __init__(self, config: IXC2Config) -> None:
        super().__init__()
        rope = dict(config.rope_parameters or {})
        self.theta = float(rope.get("rope_theta", 1_000_000.0))
        self.kind = rope.get("rope_type", "default")
        self.factor = float(rope.get("factor", 1.0))
        if self.kind not in ("default", "linear", "dynamic"):
            raise ValueError(f"rope type {self.kind!r} is none of default, linear, dynamic")
        self.max_positions = config.max_position_embeddings
        self.head_dim = config.head_dim
        self.stateful = config.ntk_stateful
        self._longest = 0  # the longest sequence so far, if `stateful`

    def _bases(self, position_ids: torch.Tensor, sequence_tokens: int | None) -> list[float]:
        """Return the base of each row, or the one of all rows."""
        if self.kind != "dynamic":
            return [self.theta]
        lengths = [sequence_tokens] if sequence_tokens else (position_ids.amax(-1) + 1).tolist()
        if self.stateful:
            self._longest = max(*lengths, self._longest)
            lengths = [self._longest]
        return list(map(self._base, lengths))

    def _base(self, length: int) -> float:
        if length <= self.max_positions:
            return self.theta
        stretch = self.factor * length / self.max_positions - (self.factor - 1)
        return float(self.theta * stretch ** (self.head_dim / (self.head_dim - 2)))

    @torch.no_grad()
    def forward(
        self, position_ids: torch.Tensor, dtype: torch.dtype, sequence_tokens: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines [B, 1, L, d] for position_ids [B, L], computed in fp32.

        With dynamic scaling they depend on the length of a sequence: `sequence_tokens`, or each row's last position.
        """
        exponents = torch.arange(0, self.head_dim, 2, device=position_ids.device).float() / self.head_dim
        frequencies = torch.stack([1.0 / base**exponents for base in self._bases(position_ids, sequence_tokens)])
        positions = position_ids.float()
        if self.kind == "linear":
            positions = positions / self.factor
        angles = positions[:, None, :, None] * frequencies[:, None, None]
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def _linear(config: IXC2Config, name: str) -> tuple[nn.Linear, PLoRA]:
    """Create a decoder linear and its PLoRA branch."""
    out_features, in_features = config.linear_shape(name)
    return nn.Linear(in_features, out_features, bias=False), PLoRA(in_features, out_features, *config.plora_of(name))


class Attention(nn.Module):
    """Grouped-query attention with a fused wqkv."""

    def __init__(self, config: IXC2Config, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = 0.0
        self.is_causal = True
        self.wqkv, self.wqkv_plora = _linear(config, "wqkv")
        self.wo, self.wo_plora = _linear(config, "wo")

    def forward(
        self,
        x_BLD: torch.Tensor,
        angles: tuple[torch.Tensor, torch.Tensor],
        images: ImageRows | None,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Map [B, L, D] to [B, L, D]; the probabilities [B, H, L, keys] come along if `eager` computes them."""
        batch, length, _ = x_BLD.shape
        qkv = apply(self.wqkv, self.wqkv_plora, x_BLD, images)
        query, key, value = heads(qkv, angles, self.head_dim, self.num_key_value_groups)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        if isinstance(past_key_values, SharedPrefixCache):
            out = past_key_values.attend(self.layer_idx, query, key, value, self.scaling)
            return apply(self.wo, self.wo_plora, out.reshape(batch, length, -1), images), None
        packed, shared = kwargs.get("cu_seq_lens_q") is not None, kwargs.get("parents") is not None
        attend = attention_of(self.config._attn_implementation, packed=packed, shared=shared)
        out, probabilities = attend(
            self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs
        )
        out_BLD = out.reshape(batch, length, -1).contiguous()
        return apply(self.wo, self.wo_plora, out_BLD, images), probabilities


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: IXC2Config) -> None:
        super().__init__()
        self.w1, self.w1_plora = _linear(config, "w1")
        self.w3, self.w3_plora = _linear(config, "w3")
        self.w2, self.w2_plora = _linear(config, "w2")

    def forward(self, x_BLD: torch.Tensor, images: ImageRows | None) -> torch.Tensor:
        """Map [B, L, D] to [B, L, D]."""
        gate = apply(self.w1, self.w1_plora, x_BLD, images)
        up = apply(self.w3, self.w3_plora, x_BLD, images)
        return apply(self.w2, self.w2_plora, gated(gate, up), images)


class DecoderLayer(GradientCheckpointingLayer):
    """Pre-norm attention and feed-forward, each with a residual."""

    def __init__(self, config: IXC2Config, layer_idx: int) -> None:
        super().__init__()
        self.attention = Attention(config, layer_idx)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.ffn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x_BLD: torch.Tensor,
        angles: tuple[torch.Tensor, torch.Tensor],
        images: ImageRows | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Map [B, L, D] to [B, L, D]."""
        # no name for what attention returns: it would keep it in memory during the feed-forward
        x_BLD = (
            x_BLD
            + self.attention(self.attention_norm(x_BLD), angles, images, attention_mask, past_key_values, **kwargs)[0]
        )
        out_BLD: torch.Tensor = x_BLD + self.feed_forward(self.ffn_norm(x_BLD), images)
        return out_BLD


class Decoder(nn.Module):
    """Decoder layers, from embeddings to normed hidden states."""

    def __init__(self, config: IXC2Config) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = Rotary(config)

    def forward(
        self,
        embeds_BLD: torch.Tensor,
        image_rows_I: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        sequence_tokens: int | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, Cache | None]:
        """Run all layers.

        Args:
            embeds_BLD: embeddings with the image rows already written in.
            image_rows_I: flat indices (into B*L) of the image positions, where PLoRA acts; None without images.
            attention_mask: [B, L] with 1 for real positions, or None. Not used when segment boundaries are given.
            position_ids: [B, L]; None counts from the cache's length, whatever the padding (as in training).
            past_key_values: the cache to read and extend.
            use_cache: create a cache if none is given.
            sequence_tokens: length of the whole sequence where more of it follows; read with dynamic rotary scaling.
            **kwargs: arguments of the attention function, such as `cu_seq_lens_q`, `max_length_q` and `parents`.

        Returns:
            (normed hidden states [B, L, D], the cache)
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            past = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(past, past + embeds_BLD.shape[1], device=embeds_BLD.device)[None]
        mask = None
        packed = kwargs.get("cu_seq_lens_q") is not None
        if packed:
            kwargs["bounds"] = tuple(kwargs["cu_seq_lens_q"].tolist())  # read once, not by every layer
        parents = kwargs.get("parents")
        has_mask = packed or isinstance(past_key_values, SharedPrefixCache)
        if not has_mask or (packed and self.config._attn_implementation == FLEX):
            mask = create_causal_mask(
                config=self.config,
                inputs_embeds=embeds_BLD,
                attention_mask=attention_mask,
                **named(past_key_values),
                # a restart marks a new segment; without boundaries it never does here
                position_ids=position_ids if packed and parents is None else None,
                and_mask_function=None if parents is None else family_mask(kwargs["cu_seq_lens_q"], parents),
            )
        angles = self.rotary(position_ids, embeds_BLD.dtype, sequence_tokens)
        hidden, images = embeds_BLD, ImageRows.of(image_rows_I)
        for layer in self.layers:
            hidden = layer(
                hidden,
                angles,
                images=images,
                attention_mask=mask,
                past_key_values=past_key_values,
                **kwargs,
            )
        return self.norm(hidden), past_key_values
