"""Prompts: turns with images, and the chat template that turns them into token ids."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ixtune.answering.batches import Size
from ixtune.data.record import Turn
from ixtune.data.text.conversation_rules import PLACEHOLDER
from ixtune.data.text.template import encode_prompt, expand
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.family import FOUR_KHD, Member, member_of_layout

Template = Literal["training", "original"]
"""`training`: the template of ixtune's and the reference's fine-tuning. `original`: the template of the reference's
chat, with its system prompt and a BOS in front of each part (MODEL.md 3.7)."""

# the default chat prompt of the models that have one, verbatim
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
    """A conversation that ends with a user turn.

    Attributes:
        turns: Turns with a placeholder for each image.
        images: Images in the order of the placeholders, as a prepared set stores them: root, path, tokens, layout.
    """

    turns: tuple[Turn, ...]
    images: tuple[dict[str, Any], ...]

    @property
    def image_tokens(self) -> tuple[int, ...]:
        """Number of tokens of each image."""
        return tuple(image["tokens"] for image in self.images)

    @property
    def paths(self) -> tuple[tuple[int, str], ...]:
        """Index of the image root and path of each image."""
        return tuple((image["root"], image["path"]) for image in self.images)

    @property
    def size(self) -> Size:
        """Size in a batch; own tokens are counted as 0, since the text is not tokenized."""
        return Size(start_key(self.turns, self.images), sum(self.image_tokens), 0)

    @property
    def member(self) -> Member:
        """Return the model that its images are laid out for."""
        sizes = [(image["rows"], image["cols"], image["tokens"]) for image in self.images[:1]]
        return member_of_layout(*sizes[0]) if sizes else FOUR_KHD

    def ids(self, tokenizer: Tokenizer, template: Template = "training", member: Member | None = None) -> list[int]:
        """Return token ids up to the beginning of the answer, 0 at image positions.

        Args:
            tokenizer: The base's.
            template: Chat template to use.
            member: The base's; None for the one that the images were laid out for.

        Raises:
            TemplateError: The conversation is malformed.
        """
        original = template == "original"
        member = member or self.member
        sample = encode_prompt(
            self.turns,
            self.image_tokens,
            tokenizer,
            system=_ORIGINAL_SYSTEM if original and member.chat_system else None,
            bos_every_part=original and member.chat_bos,
            bos_first=original,
            member=member,
        )
        return expand(sample)[0]


def start_key(turns: Sequence[Turn], images: Sequence[Mapping[str, Any]]) -> Hashable:
    """Return a key that is equal for conversations with the same images and the same text before the last of them.

    None without images.
    """
    if not images:
        return None
    last = max((index for index, turn in enumerate(turns) if PLACEHOLDER in turn.text), default=-1)
    if last < 0:  # the image is in front of the text
        return tuple(tuple(sorted(image.items())) for image in images)
    before = [(turn.role, turn.text) for turn in turns[:last]]
    before.append((turns[last].role, turns[last].text.rpartition(PLACEHOLDER)[0]))
    return (*before, *(tuple(sorted(image.items())) for image in images))
