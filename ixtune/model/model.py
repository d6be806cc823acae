"""Models of the family for training and generation, on transformers' own base classes.

Images enter as token positions: `input_ids` holds `config.image_token_id` at every position of an image span, and
the projected image rows are written there. Padding, packing, `generate` and the cache thus stay ordinary.

Shape letters: B batch, L length, D hidden, T = B*L, N crops, I image positions, S supervised rows, m merged width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.output_capturing import capture_outputs

from ixtune.checkpoint import name_mapping as _register_names  # noqa: F401 - original tensor names
from ixtune.model import cache_name
from ixtune.model.configuration import IXC2Config
from ixtune.model.decoder import Attention, Decoder, DecoderLayer, RMSNorm
from ixtune.model.grids import Grids, pairs_of, repeat_pieces, split_by_tokens
from ixtune.model.loss import supervised_loss, supervised_rows
from ixtune.model.plora import PLoRA
from ixtune.model.vision import Separators, VisionTower, image_vectors


class IXC2ForCausalLM(PreTrainedModel, GenerationMixin):
    """InternLM-XComposer2-4KHD or another member of its family.

    `from_pretrained` reads the original checkpoint form (original names, `.bin` or safetensors, any sharding) and
    `save_pretrained` writes the original names back.
    """

    config_class = IXC2Config
    config: IXC2Config
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderLayer"]
    _skip_keys_device_placement = [*cache_name.NAMES]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": DecoderLayer, "attentions": Attention}  # noqa: RUF012
    vision_chunk = 64
    """Views that the tower sees at a time; `ixtune.planning.memory_options` sets it."""

    def __init__(self, config: IXC2Config) -> None:
        super().__init__(config)
        self.model = Decoder(config)
        self.output: nn.Module = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.vit = VisionTower(config.vision)
        self.separators = Separators(config.merged_width)
        self.vision_proj = nn.Sequential(
            nn.Linear(config.merged_width, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
        )
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, PLoRA):
            nn.init.zeros_(module.B.weight)  # a new branch adds nothing, like a new LoRA
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, Separators):
            nn.init.normal_(module.glb, std=self.config.initializer_range)
            nn.init.normal_(module.sub, std=self.config.initializer_range)

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embeddings."""
        embeddings: nn.Module = self.model.tok_embeddings
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings."""
        self.model.tok_embeddings = value

    def get_output_embeddings(self) -> nn.Module:
        """Return the output head."""
        return self.output

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the output head."""
        self.output = new_embeddings

    def get_image_vectors(self, crops: torch.Tensor, grids: Grids) -> torch.Tensor:
        """Return the vectors before the projector [I, m] of uint8 crops [N, 3, side, side].

        The tower runs without gradients while none of its parameters requires one.
        """
        return image_vectors(self.vit, self.separators, crops, pairs_of(grids), self.vision_chunk)

    def image_positions(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return where image vectors belong, bool [B, L]: at the image id, or at its embedding."""
        if inputs_embeds is None:
            assert input_ids is not None
            return input_ids == self.config.image_token_id
        token = torch.tensor(self.config.image_token_id, device=inputs_embeds.device)
        found: torch.Tensor = (inputs_embeds == self.model.tok_embeddings(token)).all(dim=-1)
        return found

    def embed(
        self,
        input_ids: torch.Tensor | None,
        crops: torch.Tensor | None = None,
        grids: Grids | None = None,
        image_vectors: torch.Tensor | None = None,
        image_rows: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the token embeddings with the projected image rows written in.

        Args:
            input_ids: [B, L], `config.image_token_id` at image positions.
            crops: uint8 [N, 3, side, side], the local crops of all images in the order of their spans.
            grids: (rows, cols) of each image.
            image_vectors: [I, m] in place of crops and grids, from `get_image_vectors`.
            image_rows: int64 [I] flat indices of the image positions; found from input_ids where None.
            inputs_embeds: [B, L, D], the embeddings of input_ids, in place of them.

        Returns:
            (embeddings [B, L, D], image_rows as given or found; None without images)

        Raises:
            ValueError: the image positions and the images' tokens differ in number.
        """
        embeds = self.model.tok_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if image_vectors is None:
            if crops is None:
                return embeds, image_rows if inputs_embeds is not None else None
            if grids is None:
                raise ValueError("crops without grids: pass (rows, cols) of each image")
            image_vectors = self.get_image_vectors(crops, grids)
        if image_rows is None:
            image_rows = self.image_positions(input_ids, inputs_embeds).reshape(-1).nonzero().squeeze(1)
        if len(image_rows) != len(image_vectors):
            raise ValueError(
                f"input_ids holds {len(image_rows)} image positions, but the images have {len(image_vectors)} tokens"
            )
        # Under an adapter this may be PEFT's wrapper around two projectors, of which the trained one comes last, or
        # hold LoRA, which is in fp32 next to the frozen layers and has no bias.
        projector_dtype = [p.dtype for name, p in self.vision_proj.named_parameters() if name.endswith("bias")][-1]
        projected_ID = self.vision_proj(image_vectors.to(projector_dtype)).to(embeds.dtype)
        flat_TD = embeds.reshape(-1, embeds.shape[-1]).index_copy(0, image_rows, projected_ID)
        return flat_TD.view_as(embeds), image_rows

    @capture_outputs  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        crops: torch.Tensor | None = None,
        grids: Grids | None = None,
        image_vectors: torch.Tensor | None = None,
        image_rows: torch.Tensor | None = None,
        supervised: tuple[torch.Tensor, torch.Tensor] | None = None,
        num_items_in_batch: torch.Tensor | float | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run the network on a batch or a pack.

        Args:
            input_ids: [B, L], `config.image_token_id` at image positions.
            attention_mask: [B, L], 1 at real positions; not for packs.
            position_ids: [B, L]; in a pack they restart with every segment that has no parent.
            past_key_values: the cache.
            inputs_embeds: [B, L, D] in place of input_ids; without crops, images are already in it at `image_rows`.
            labels: [B, L] unshifted, -100 at unsupervised positions. Gives loss and logits.
            use_cache: return a cache; default on outside training.
            logits_to_keep: compute logits of the last n positions only (0: all), or of the given indices.
            crops: see `embed`.
            grids: see `embed`.
            image_vectors: see `embed`.
            image_rows: see `embed`.
            supervised: (rows [S], targets [S]) as `loss.supervised_rows` gives them: loss only, no logits.
            num_items_in_batch: supervised tokens of the whole optimizer step; default: of this batch.
            cache: `past_key_values` as transformers calls it from 5.24 on.
            **kwargs: of a pack, segment boundaries `cu_seq_lens_q` and `max_length_q`, and `parents` where segments
                share a prefix: for each segment the number of the earlier segment that it continues, or -1. The
                positions of such a segment continue those of its parent.
        """
        hidden, kept = self.hidden_states(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values if cache is None else cache,
            inputs_embeds,
            use_cache,
            crops,
            grids,
            image_vectors,
            image_rows,
            **kwargs,
        )
        loss: torch.Tensor | None = None
        if supervised is not None:
            loss = supervised_loss(hidden.flatten(0, 1), *supervised, self.output, num_items_in_batch)
            return CausalLMOutputWithPast(loss=loss, **cache_name.named(kept))
        if labels is not None:
            loss = supervised_loss(hidden.flatten(0, 1), *supervised_rows(labels), self.output, num_items_in_batch)
        keep: slice | torch.Tensor
        if isinstance(logits_to_keep, int):
            keep = slice(-logits_to_keep, None) if logits_to_keep else slice(None)
        else:
            keep = logits_to_keep
        outputs = CausalLMOutputWithPast(loss=loss, logits=self.output(hidden[:, keep]), **cache_name.named(kept))
        if kwargs.get("output_hidden_states", self.config.output_hidden_states):
            outputs.last_hidden_state = hidden  # read by `capture_outputs`, which puts it last; no field of the output
        return outputs

    def hidden_states(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        crops: torch.Tensor | None = None,
        grids: Grids | None = None,
        image_vectors: torch.Tensor | None = None,
        image_rows: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, Cache | None]:
        """Return the normed hidden states [B, L, D] and the cache; the arguments are those of `forward`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds")
        embeds, image_rows = self.embed(input_ids, crops, grids, image_vectors, image_rows, inputs_embeds)
        hidden, cache = self.model(
            embeds,
            image_rows_I=image_rows,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=(not self.training) if use_cache is None else use_cache,
            **kwargs,
        )
        return hidden, cache

    @property
    def base_model(self) -> nn.Module:
        """Return the network without its head, for trainers with their own head, such as TRL's."""
        return _Headless(self)

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Pass images with the prompt only; later steps have none, hence no PLoRA (MODEL.md 4).

        Without a cache every step is a prompt, and computes the images again.
        """
        # transformers types `self` by a protocol which its PreTrainedModel does not meet for mypy; below too.
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids,
            next_sequence_length=next_sequence_length,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **cache_name.named(past_key_values if cache is None else cache),
            **kwargs,
        )
        kept = inputs.get(cache_name.NAME)
        if kept is not None and kept.get_seq_length() > 0:
            for name in ("crops", "grids", "image_vectors", "image_rows"):
                inputs.pop(name, None)
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.LongTensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.LongTensor, dict[str, Any]]:
        """Repeat whole rows for beams, keeping the crops of a row together and in order."""
        crops, grids = model_kwargs.pop("crops", None), model_kwargs.pop("grids", None)
        vectors, rows_I = model_kwargs.pop("image_vectors", None), model_kwargs.pop("image_rows", None)
        embeds = model_kwargs.get("inputs_embeds")
        length = embeds.shape[1] if embeds is not None else input_ids.shape[1] if input_ids is not None else 0
        ids, expanded = super()._expand_inputs_for_generation(  # type: ignore[misc]
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        if expand_size > 1 and input_ids is not None and (crops is not None or vectors is not None):
            tokens_of_rows = self.image_positions(input_ids, embeds).sum(dim=1).tolist()
            if vectors is not None:
                vectors = repeat_pieces(vectors, tokens_of_rows, expand_size)
            else:
                pairs = pairs_of(() if grids is None else grids)
                images_of_rows = split_by_tokens(pairs, tokens_of_rows, self.config.member)
                crops = repeat_pieces(crops, [sum(r * c for r, c in row) for row in images_of_rows], expand_size)
                grids = [grid for row in images_of_rows for _ in range(expand_size) for grid in row]
        if expand_size > 1 and rows_I is not None:
            repeated = torch.arange(expand_size, device=rows_I.device)[None] + (rows_I // length * expand_size)[:, None]
            rows_I = (repeated * length + (rows_I % length)[:, None]).flatten().sort().values
        return ids, {**expanded, "crops": crops, "grids": grids, "image_vectors": vectors, "image_rows": rows_I}


class _Headless(nn.Module):
    """The network up to its hidden states, images included. It holds no parameters itself."""

    whole: IXC2ForCausalLM

    def __init__(self, model: IXC2ForCausalLM) -> None:
        super().__init__()
        self.__dict__["whole"] = model  # no submodule: its parameters belong to the model

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPast:
        """Return `last_hidden_state` [B, L, D] and the cache; the arguments are those of the model."""
        if "cache" in kwargs:
            kwargs["past_key_values"] = kwargs.pop("cache")
        hidden, kept = self.whole.hidden_states(*args, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=hidden, **cache_name.named(kept))


# As in the original's own auto_map, AutoModel gives the whole network: the checkpoint's names, such as `output.weight`
# beside `vit`, leave no name for a part below the head.
AutoModel.register(IXC2Config, IXC2ForCausalLM)
AutoModelForCausalLM.register(IXC2Config, IXC2ForCausalLM)
AutoModelForImageTextToText.register(IXC2Config, IXC2ForCausalLM)
AutoModelForMultimodalLM.register(IXC2Config, IXC2ForCausalLM)
