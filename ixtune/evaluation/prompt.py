"""What a model is asked: turns, the images they show, and the template that makes ids of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ixtune.data.record import Turn
from ixtune.data.text.template import encode_prompt, expand
from ixtune.data.text.tokenizer import Tokenizer

Template = Literal["training", "original"]
"""`training`: as ixtune and the reference's finetuning train. `original`: as the reference's chat asks, with its system
prompt and a BOS in front of each part (MODEL.md 3.7)."""

# the default of the reference's chat, word for word
_ORIGINAL_SYSTEM = (
    "You are an AI assistant whose name is InternLM-XComposer (浦语·灵笔).\n"
    "- InternLM-XComposer (浦语·灵笔) is a multi-modality conversational language model that is developed by "
    "Shanghai AI Laboratory (上海人工智能实验室). It is designed to be helpful, honest, and harmless.\n"
    "- InternLM-XComposer (浦语·灵笔) can understand and communicate fluently in the language chosen by the user "
    "such as English and 中文.\n"
    "- InternLM-XComposer (浦语·灵笔) is capable of comprehending and articulating responses effectively based on the "
    "provided image."
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """Turns up to and including a user turn, and the prepared images they show."""

    turns: tuple[Turn, ...]
    images: tuple[dict[str, Any], ...]  # as the prepared set stores them: root, path, tokens, the layout

    @property
    def image_tokens(self) -> tuple[int, ...]:
        """Image tokens of each image."""
        return tuple(image["tokens"] for image in self.images)

    @property
    def paths(self) -> tuple[tuple[int, str], ...]:
        """Which images these are: the image root's index and the path of each."""
        return tuple((image["root"], image["path"]) for image in self.images)

    def ids(self, tokenizer: Tokenizer, template: Template = "training") -> list[int]:
        """Token ids with 0 at image positions, up to where the answer begins.

        Raises:
            TemplateError: the conversation is malformed.
        """
        original = template == "original"
        sample = encode_prompt(
            self.turns,
            self.image_tokens,
            tokenizer,
            system=_ORIGINAL_SYSTEM if original else None,
            bos_every_part=original,
        )
        return expand(sample)[0]
