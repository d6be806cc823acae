"""Read single turns: roles, placeholders, loss masks, system prompts. Shared by all conversation schemas."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from ixtune.data.record import Role, Turn
from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.fields import LOSS_KEYS, is_missing, require_text, shown
from ixtune.data.schemas.value_paths import list_in_text, object_in_text, rows_of_struct
from ixtune.data.text.conversation_rules import PLACEHOLDER, require_placeholders

IMAGE = "<image>"
"""Placeholder of all formats except the official one."""

_ASKED = ("user", "question", "human", "query", "instruction", "prompt", "q", "Q")
_SAID = ("assistant", "answer", "gpt", "response", "output", "completion", "a", "A", "answers")
_LEARNED = (True, 1, None)
_LOSS_OR_MASK = {"loss", "mask"}
# with false: the turn is not to be learned, in words that no format above uses
_LEARNS = {"train", "training", "trained", "trainable", "learn", "learned", "learning", "supervise", "supervised"}
_MASKS = ("mask", "masked", "ignore", "skip", "exclude", "train_detail")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_TOOLS = ("function", "function_call", "ipython", "observation", "tool", "tool_call", "tool_response")


def value_in(turn: Mapping[str, Any], key: str, number: int, hint: str) -> Any:
    """Return the value of a turn under a key.

    Raises:
        RecordError: The value is missing or empty.
    """
    value = turn.get(key)
    if is_missing(value):
        found = (
            f"turn {number} has no `{key}`" if key not in turn else f"the `{key}` of turn {number} is {shown(value)}"
        )
        raise RecordError(Reason.MISSING_FIELD, found, hint=hint)
    return value


def role_in(turn: Mapping[str, Any], key: str, number: int, roles: Mapping[str, Role], hint: str) -> Role:
    """Return the role of a turn.

    Args:
        turn: A turn as written in the source.
        key: Key of its role.
        number: Which turn of the conversation it is, counted from 1.
        roles: The known names, in lower case.
        hint: Description of turns in this format.

    Raises:
        RecordError: The role is missing or unknown.
    """
    name = value_in(turn, key, number, hint)
    if not isinstance(name, str):
        raise RecordError(Reason.BAD_CONVERSATIONS, f"the `{key}` of turn {number} is {shown(name)}", hint=hint)
    role = roles.get(name.lower().strip("<|>"))  # DeepSeek-VL writes <|User|>
    if role is None:
        raise RecordError(
            Reason.UNKNOWN_ROLE,
            f"turn {number} is from {shown(name)}",
            hint="remove such records: tools cannot be trained here"
            if name.lower() in _TOOLS
            else f"write one of {', '.join(roles)}",
        )
    return role


def turns_under(fields: Mapping[str, Any], key: str, hint: str) -> Sequence[Mapping[str, Any]]:
    """Return the turns of a conversation as the source has them.

    Raises:
        RecordError: There are none, or they are not objects.
    """
    value = _listed(fields.get(key))
    if is_missing(value):
        found = f"there is no `{key}`" if key not in fields else f"`{key}` is {shown(value)}"
        raise RecordError(Reason.MISSING_FIELD, found, hint=hint)
    if not isinstance(value, list | tuple) or not value:
        raise RecordError(Reason.BAD_CONVERSATIONS, f"`{key}` is {shown(value)}", hint=hint)
    for number, turn in enumerate(value, start=1):
        if not isinstance(turn, Mapping):
            raise RecordError(Reason.BAD_CONVERSATIONS, f"turn {number} is {shown(turn)}", hint=hint)
    return value


def turns_in(value: Any) -> list[Mapping[str, Any]]:
    """Return the turns in a value without checking them; empty if it holds none."""
    value = _listed(value)
    return [turn for turn in value if isinstance(turn, Mapping)] if isinstance(value, list | tuple) else []


def _listed(value: Any) -> Any:
    """Return turns as a list: table cells contain conversations as text, Parquet files as structs of lists."""
    if isinstance(value, str) and (read := list_in_text(value)) is not None:
        return read
    return rows_of_struct(value) if isinstance(value, Mapping) else value


def pairs_in(value: Any, name: str) -> list[tuple[Any, Any]]:
    """Return the (question, answer) pairs of a list of pairs.

    Args:
        value: [[question, answer], ...], or objects with two of the usual names: {user, assistant}, {question,
            answer}, {human, assistant}, {query, response}, ...; or the JSON of one of these.
        name: Name of the field.

    Raises:
        RecordError: It is something else.
    """
    if isinstance(value, str):
        value = object_in_text(value)
    pairs = []
    for number, one in enumerate(value if isinstance(value, list | tuple) else ()):
        if isinstance(one, list | tuple) and len(one) == 2:
            pairs.append((one[0], one[1]))
        elif isinstance(one, Mapping) and (keys := pair_keys(one)):
            pairs.append((one[keys[0]], one[keys[1]]))
        else:
            raise RecordError(
                Reason.BAD_CONVERSATIONS,
                f"`{name}` {number + 1} is {shown(one)}",
                hint='write pairs of a question and an answer, e.g. [["What is it?", "A receipt."]]',
            )
    if not pairs:
        raise RecordError(
            Reason.BAD_CONVERSATIONS,
            f"`{name}` is {shown(value)}",
            hint='write pairs of a question and an answer, e.g. [["What is it?", "A receipt."]]',
        )
    return pairs


def pair_keys(one: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the keys of a question and of its answer in one object; None if it does not have both."""
    asked = next((key for key in _ASKED if key in one), None)
    said = next((key for key in _SAID if key in one), None)
    return (asked, said) if asked and said else None


def learn_in(turn: dict[str, Any], number: int) -> bool:
    """Remove the loss mask from a turn and return it.

    Args:
        turn: The turn as written in the source; keys of `LOSS_KEYS` are removed.
        number: Which turn of the conversation it is, counted from 1.

    Returns:
        Whether the turn is trained on; True if there is no mask.

    Raises:
        RecordError: A weight is neither 0 nor 1, or the turn is masked by a key that formats use in opposite ways.
    """
    learn = True
    if masked := next((key for key, value in turn.items() if value is not None and _says_mask(key, value)), None):
        raise RecordError(
            Reason.FIELD_NOT_USED,
            f"turn {number} has `{masked}`: {shown(turn[masked])}",
            hint="mask an answer with `train`: false",
        )
    for key in LOSS_KEYS:
        if key not in turn:
            continue
        value = turn.pop(key)
        if is_missing(value) or value in _LEARNED:
            continue
        if value not in (False, 0):
            raise RecordError(
                Reason.FIELD_NOT_USED,
                f"the `{key}` of turn {number} is {shown(value)}",
                hint="write true or 1 for an answer to learn, false or 0 for context only; no other value is allowed",
            )
        learn = False
    return learn


def _says_mask(key: str, value: Any) -> bool:
    """Return whether a key masks a turn in an unsupported way, such as `no_loss` or `loss_mask`."""
    if key in _MASKS:
        return bool(value)
    if key in LOSS_KEYS:
        return False
    words = _words(key)
    return not words.isdisjoint(_LOSS_OR_MASK) or (not words.isdisjoint(_LEARNS) and value in (False, 0))


@lru_cache(maxsize=1024)
def _words(key: str) -> frozenset[str]:
    """Return the words of a key, such as those of `is_trainable` or `doTrain`."""
    return frozenset(word.lower() for word in _WORD.findall(key))


def our_text(text: str, where: str, written: str | None) -> str:
    """Return a text with our placeholder in place of the source's.

    Args:
        text: The text as written in the source.
        where: Name in messages.
        written: The source's placeholder; None if it has none, so that no text contains one.

    Raises:
        RecordError: It holds our placeholder though the source's is another, or what `require_text` refuses.
    """
    require_text(text, where)
    if written == PLACEHOLDER:
        return text
    if PLACEHOLDER in text:
        known = f"an image is written {written} here" if written else "images are separate parts here"
        raise RecordError(
            Reason.SPECIAL_TOKEN_IN_TEXT,
            f"{where} contains {PLACEHOLDER}",
            hint=f"remove it or write it differently: {known}",
        )
    return text.replace(written, PLACEHOLDER) if written else text


def whole_conversation(
    turns: Sequence[Turn], own: str | None, default: str | None, images: int, written: str
) -> tuple[Turn, ...]:
    """Return the turns with the system prompt first, after checking the placeholders.

    An empty system turn is left out.

    Args:
        turns: Turns as read, with our placeholder.
        own: The system prompt outside the turns.
        default: The system prompt for records without one.
        images: Number of images of the record.
        written: The source's placeholder, for messages.

    Raises:
        RecordError: There are two system prompts, one after the first turn, or placeholders and images differ.
    """
    for number, turn in enumerate(turns[1:], start=2):
        if turn.role == "system":
            raise RecordError(
                Reason.SYSTEM_NOT_FIRST,
                f"turn {number} has the role system",
                hint="put its text into the first turn, or in front of the question it belongs to",
            )
    if turns and turns[0].role == "system":
        text = turns[0].text.strip()
        if text and own is not None and own.strip() != text:
            raise RecordError(
                Reason.BAD_CONVERSATIONS,
                "there are two system prompts: `system`, and the first turn",
                hint="remove one of them",
            )
        own = own or text
        turns = turns[1:]
    system = own or default
    whole = (Turn("system", system), *turns) if system else tuple(turns)
    if written != PLACEHOLDER:  # for our own placeholder, the template reports this
        require_placeholders(whole, images, written)
    return whole
