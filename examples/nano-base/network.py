"""The network that is trained, and every import from ixtune that the training scripts need."""

from __future__ import annotations

from ixtune.data.images.pixels import crops as cut
from ixtune.data.images.pixels import place
from ixtune.layout import PatchLayout, plan
from ixtune.model.configuration import IXC2Config
from ixtune.model.low_memory import heads
from ixtune.model.model import IXC2ForCausalLM
from ixtune.model.plora import ImageRows
from ixtune.model.vision import lay_out, merge_2x2, normalise, overview_of

__all__ = [
    "IXC2Config",
    "IXC2ForCausalLM",
    "ImageRows",
    "PatchLayout",
    "configuration",
    "cut",
    "heads",
    "lay_out",
    "merge_2x2",
    "normalise",
    "overview_of",
    "place",
    "plan",
]

VOCABULARY = 354
WIDTH = 128  # of the vision tower


def configuration(initializer_range: float) -> IXC2Config:
    """Return the 7B's proportions at three million parameters."""
    return IXC2Config(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        initializer_range=initializer_range,
        vision_config={
            "hidden_size": WIDTH,
            "intermediate_size": 4 * WIDTH,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "projection_dim": WIDTH,
        },
        plora={"wqkv": {"rank": 8, "alpha": 16}, "others": {"rank": 16, "alpha": 16}},
        dtype="float32",
    )
