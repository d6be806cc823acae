r"""Convert a conversation to token ids and supervised spans, with the training reference's chat template.

    [146]user\n QUESTION [145]\n [146]assistant\n ANSWER [145]\n ... </s>

[n] is short for [UNUSED_TOKEN_n], and \n is a newline. Source: MODEL.md 3.2 to 3.4. A system prompt, which the
training reference does not have, comes first as in the reference's chat: [146]system\n TEXT [145]\n (3.7).

The text is tokenized in runs between the turn pieces and the images. Turn pieces stop every merge of the
vocabulary, so the ids are those of the whole text split only at the images, as the reference has them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ixtune.data.record import Record, Turn
from ixtune.data.rejects import Reason
from ixtune.data.text.conversation_rules import (
    PLACEHOLDER,
    SIDES,
    TemplateError,
    require_alternation,
    require_placeholders,
)
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.family import FOUR_KHD, Member

TEMPLATE_VERSION = 1
"""Version stored in prepared data; increase it whenever `encode` gives other ids or spans for the same record."""

IMAGE_TOKEN_ID = 0
"""Id of image positions in `expand`: the unknown piece, which no text accepted by `encode` produces."""
IGNORED = -100
"""Label of positions that are not supervised: torch's ignore_index."""

_SPECIAL = re.compile(r"<unk>|<s>|</s>|\[UNUSED_TOKEN_\d+\]")


@dataclass(frozen=True, slots=True)
class Sample:
    """A tokenized conversation, without image positions.

    Attributes:
        token_ids: Ids of the text, BOS included, without image positions.
        image_slots: For each image the offset into `token_ids` at which it is inserted.
        supervised: Half-open spans of `token_ids` that are targets, each predicted from the position before.
        image_tokens: Length of each image's image span.
    """

    token_ids: tuple[int, ...]
    image_slots: tuple[int, ...]
    supervised: tuple[tuple[int, int], ...]
    image_tokens: tuple[int, ...]

    @property
    def length(self) -> int:
        """Number of positions in the model: text and image tokens."""
        return len(self.token_ids) + sum(self.image_tokens)

    @property
    def supervised_tokens(self) -> int:
        """Number of positions that are targets."""
        return sum(end - start for start, end in self.supervised)


def encode(record: Record, image_tokens: Sequence[int], tokenizer: Tokenizer, member: Member = FOUR_KHD) -> Sample:
    """Return the training sample of a record.

    Each answer to train on and its end-of-turn piece are supervised, and after the last answer also the newline and
    EOS, as in the reference (MODEL.md 3.4), but derived from the structure of the
    conversation. Answers with `learn` False are context only.

    Args:
        record: A conversation that starts with the user, or a system turn before, and ends with the assistant.
        image_tokens: Length of each image's image span, in the order of the placeholders.
        tokenizer: The base's.
        member: The base's, which decides about an image without a placeholder.

    Raises:
        TemplateError: The conversation is malformed.
    """
    require_alternation(record.turns)
    if record.turns[-1].role == "user":
        raise TemplateError(
            Reason.ENDS_WITH_USER,
            "the last turn is the user's",
            "add the answer, or remove the last question",
        )
    writer = _Writer(tokenizer)
    if _is_unplaced(record.turns, len(image_tokens), member):
        writer.image_slots.append(0)  # before BOS too
    else:
        require_placeholders(record.turns, len(image_tokens))
    for turn in record.turns:
        writer.turn(turn)
    if not writer.supervised:
        answered = any(turn.role == "assistant" for turn in record.turns)
        raise TemplateError(
            Reason.NOTHING_SUPERVISED,
            "no answer is trained on" if answered else "there is a system prompt and nothing else",
            "unmask an answer, or remove the record" if answered else "add a question and its answer",
        )
    writer.close(learn=record.turns[-1].learn)
    return writer.sample(image_tokens)


def encode_prompt(
    turns: Sequence[Turn],
    image_tokens: Sequence[int],
    tokenizer: Tokenizer,
    *,
    system: str | None = None,
    bos_every_part: bool = False,
    bos_first: bool = False,
    member: Member = FOUR_KHD,
) -> Sample:
    """Return the prompt for the next answer: it ends with the assistant's header, and nothing is supervised.

    By default it matches the training template token for token. The original's chat differs from its own training in
    two ways, which `system` and `bos_every_part` restore (MODEL.md 3.7).

    Args:
        turns: The conversation so far, from the system turn or the user's first to the user's last.
        image_tokens: Length of each image's image span, in the order of the placeholders.
        tokenizer: The base's.
        system: System prompt for turns without one, such as the original's default meta instruction.
        bos_every_part: Put BOS in front of each run of text between images; two BOS if there is no image.
        bos_first: Begin as the original's chats do: BOS before an image without a placeholder, where training has it
            after the image; two BOS if there is no image.
        member: The base's, which decides about an image without a placeholder.

    Raises:
        TemplateError: The conversation is malformed, or its last turn is not the user's.
    """
    require_alternation(turns)
    if turns[-1].role != "user":
        raise TemplateError(
            Reason.BAD_CONVERSATIONS,
            f"the prompt ends with {SIDES[turns[-1].role]}",
            "end it with the user's question",
        )
    writer = _Writer(tokenizer, bos_every_part)
    if _is_unplaced(turns, len(image_tokens), member):
        writer.image_slots.append(int(bos_first))
    else:
        require_placeholders(turns, len(image_tokens))
    if (bos_every_part or bos_first) and not image_tokens:
        writer.token_ids.append(tokenizer.bos_id)  # the original writes BOS and the tokenizer adds another one
    if system and turns[0].role != "system":
        writer.system(system)
    for turn in turns:
        writer.turn(turn)
    writer.answer_header()
    writer.supervised.clear()
    return writer.sample(image_tokens)


def expand(sample: Sample) -> tuple[list[int], list[int]]:
    """Return (input_ids, labels), `sample.length` long: images spliced in as id 0, labels unshifted."""
    labels_of_text = [IGNORED] * len(sample.token_ids)
    for start, end in sample.supervised:
        labels_of_text[start:end] = sample.token_ids[start:end]
    input_ids: list[int] = []
    labels: list[int] = []
    done = 0
    for slot, tokens in zip(sample.image_slots, sample.image_tokens, strict=True):
        input_ids += [*sample.token_ids[done:slot], *[IMAGE_TOKEN_ID] * tokens]
        labels += [*labels_of_text[done:slot], *[IGNORED] * tokens]
        done = slot
    return [*input_ids, *sample.token_ids[done:]], [*labels, *labels_of_text[done:]]


class _Writer:
    """Appends turns to a growing sample."""

    def __init__(self, tokenizer: Tokenizer, bos_every_part: bool = False) -> None:
        self.tokenizer = tokenizer
        self.bos_every_part = bos_every_part
        self.token_ids = [tokenizer.bos_id]
        self.image_slots: list[int] = []
        self.supervised: list[tuple[int, int]] = []
        self.after_image = False
        self.turns = 0
        self.where = ""

    def turn(self, turn: Turn) -> None:
        self.turns += 1
        self.where = f"turn {self.turns}"
        text = turn.text.strip()
        if turn.role == "system":
            self.system(text)
        elif turn.role == "user":
            self._user(text)
        else:
            self._answer(text, learn=turn.learn)

    def system(self, text: str) -> None:
        """Append a system turn, from the conversation or put in front of it."""
        self.where = "the system prompt"
        self._add([self.tokenizer.start_of_turn_id, *self._ids(f"system\n{text.strip()}")])
        self._end_turn()

    def answer_header(self) -> None:
        """Append the assistant's header."""
        self._add([self.tokenizer.start_of_turn_id, *self.tokenizer.encode("assistant\n")])

    def close(self, *, learn: bool) -> None:
        """End the text; the newline and EOS after the last answer are supervised if the answer is."""
        self._add([self.tokenizer.eos_id])
        if learn:
            start, _ = self.supervised[-1]
            self.supervised[-1] = (start, len(self.token_ids))

    def sample(self, image_tokens: Sequence[int]) -> Sample:
        return Sample(
            token_ids=tuple(self.token_ids),
            image_slots=tuple(self.image_slots),
            supervised=tuple(self.supervised),
            image_tokens=tuple(image_tokens),
        )

    def _user(self, text: str) -> None:
        first, *others = f"user\n{text}".split(PLACEHOLDER)
        self._add([self.tokenizer.start_of_turn_id, *self._ids(first)])
        for part in others:
            self.image_slots.append(len(self.token_ids))
            self.after_image = True
            self._add(self._ids(part))
        self._end_turn()

    def _answer(self, text: str, *, learn: bool) -> None:
        self.answer_header()
        start = len(self.token_ids)
        self._add(self._ids(text))
        # the newline belongs to the template; the model must generate the end of turn itself
        if learn:
            self.supervised.append((start, len(self.token_ids) + 1))
        self._end_turn()

    def _end_turn(self) -> None:
        self._add([self.tokenizer.end_of_turn_id, *self.tokenizer.encode("\n")])

    def _add(self, ids: Sequence[int]) -> None:
        if not ids:
            return
        if self.after_image and self.bos_every_part:
            self.token_ids.append(self.tokenizer.bos_id)
        self.after_image = False
        self.token_ids.extend(ids)

    def _ids(self, text: str) -> list[int]:
        """Return the ids of a text from the data; raise if it contains special tokens of the template."""
        if special := _SPECIAL.search(text):
            raise TemplateError(
                Reason.SPECIAL_TOKEN_IN_TEXT,
                f"{self.where} contains {special.group()}",
                "remove it or write it differently: it would end or begin something in the chat template",
            )
        try:
            ids = self.tokenizer.encode(text)
        except UnicodeEncodeError as error:
            raise TemplateError(
                Reason.INVALID_UNICODE,
                f"{self.where} contains half of a surrogate pair, which is not a character",
                "write the file again in UTF-8",
            ) from error
        if self.tokenizer.unk_id in ids:
            raise TemplateError(
                Reason.UNKNOWN_CHARACTER,
                f"{self.where} contains a character that is not in the vocabulary",
                "remove it, or use a base whose vocabulary has byte fallback",
            )
        return ids


def _is_unplaced(turns: Sequence[Turn], images: int, member: Member) -> bool:
    """Return whether the only image has no placeholder and the model therefore puts it before the whole text."""
    return member.image_first and images == 1 and not any(PLACEHOLDER in turn.text for turn in turns)
