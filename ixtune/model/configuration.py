"""Configuration of the model family, read from the original `config.json` of the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.clip.configuration_clip import CLIPVisionConfig

from ixtune.checkpoint.member import completed
from ixtune.checkpoint.sizes import CLIP_L_336, Sizes
from ixtune.checkpoint.sizes import DECODER_LINEARS as DECODER_LINEARS
from ixtune.family import FOUR_KHD, Member, member_of_crop

MODEL_TYPE = "internlmxcomposer2"

# Entries of the original config.json about running, not about the network. transformers would apply some of them
# (flash_attention_2 without flash-attn raises) and refuse other parts (`max_length` is a generation setting).
# Dropped on load; `merge` and `export` copy the file itself.
_RUN_KEYS = ("attn_implementation", "max_length", "use_cache", "auto_map", "bias", "torch_dtype_original")

# The defaults: the released 7B.
_7B = Sizes()


class IXC2Config(PreTrainedConfig):
    """Sizes of the decoder, the vision tower and the PLoRA branches.

    The defaults are the released 7B. A smaller checkpoint of the same form (the embedded base, the fixtures)
    adds `vision_config` and `plora` to its config.json; the released ones have neither, and what differs between them
    is read from the tensors in the folder that the configuration is loaded from.

    Attributes:
        vision_config: sizes of the CLIP vision tower, as transformers names them.
        plora: `{"wqkv": {"rank", "alpha"}, "others": {"rank", "alpha"}}`; the scale is alpha / rank.
        image_token_id: the id at image positions. 0 is `<unk>`, which a byte-fallback vocabulary never
            produces from text, and it is inside the embedding table, so logits processors may index with it.
        ntk_stateful: keep a rotary base once stretched by dynamic NTK, as the reference does (MODEL.md 5).
    """

    model_type = MODEL_TYPE
    sub_configs = {"vision_config": CLIPVisionConfig}  # noqa: RUF012 - transformers' own convention
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012
    auto_map: ClassVar[dict[str, str]] = {}  # TRL reads it for every architecture that is not part of transformers

    vocab_size: int = _7B.vocabulary
    hidden_size: int = _7B.hidden
    intermediate_size: int = _7B.intermediate
    num_hidden_layers: int = _7B.layers
    num_attention_heads: int = _7B.heads
    num_key_value_heads: int = _7B.kv_heads
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    rope_parameters: dict[str, Any] | None = None
    pad_token_id: int | None = 2
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    plora: dict[str, Any] | None = None
    image_token_id: int = 0
    ntk_stateful: bool = False
    use_cache: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in the constants that the original keeps in code."""
        for key in self._dropped():
            if key != "attn_implementation":  # here it is the caller's; `from_dict` has dropped the file's
                kwargs.pop(key, None)
        self.use_cache = True
        if not isinstance(self.vision_config, CLIPVisionConfig):
            self.vision_config = CLIPVisionConfig(**{**CLIP_L_336, **(self.vision_config or {})})
        side = cast(int, self.vision_config.image_size)
        self.plora = self.plora or (member_of_crop(side) or FOUR_KHD).plora()
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build from a config.json, dropping the file's run settings and keeping the caller's."""
        folder = Path(kwargs.get("name_or_path") or config_dict.get("_name_or_path") or "")
        if folder.name and folder.is_dir():
            config_dict = completed(config_dict, folder)
        clean = {key: value for key, value in config_dict.items() if key not in cls._dropped()}
        return super().from_dict(clean, **kwargs)

    @classmethod
    def _dropped(cls) -> Sequence[str]:
        """Return the keys to drop: `auto_map` too, unless transformers found this very class through it."""
        return [key for key in _RUN_KEYS if key != "auto_map" or cls._auto_class is None]

    @property
    def vision(self) -> CLIPVisionConfig:
        """Return `vision_config` with its type after construction."""
        return cast(CLIPVisionConfig, self.vision_config)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def merged_width(self) -> int:
        """Width of one image token before the projector: a 2x2 block of patches side by side."""
        return 4 * self.vision.hidden_size

    def plora_of(self, linear: str) -> tuple[int, float]:
        """Return rank and scale of the PLoRA branch of `linear` (one of `DECODER_LINEARS`)."""
        branches = cast("dict[str, dict[str, Any]]", self.plora)  # filled where it was None
        entry = branches["wqkv" if linear == "wqkv" else "others"]
        return entry["rank"], entry["alpha"] / entry["rank"]

    def linear_shape(self, linear: str) -> tuple[int, int]:
        """Return (out, in) features of a decoder linear."""
        return self.sizes.linear_shape(linear)

    @property
    def member(self) -> Member:
        """Return the model of the family, see `Sizes.member`."""
        return self.sizes.member

    @property
    def sizes(self) -> Sizes:
        """Return all sizes of the network as plain integers."""
        return Sizes.from_config_json(self.to_dict())


AutoConfig.register(MODEL_TYPE, IXC2Config)
