r"""Read conversations of {from, value}: the formats of InternLM-XComposer, LLaVA, and ShareGPT.

    IXC       {"id": "7", "image": ["a.png"], "conversations": [{"from": "user", "value": "<ImageHere>What is it?"},
                                                                {"from": "assistant", "value": "A receipt."}]}
    LLaVA     {"id": "7", "image": "a.png", "conversations": [{"from": "human", "value": "<image>\nWhat is it?"},
                                                              {"from": "gpt", "value": "A receipt."}]}
    ShareGPT  as LLaVA, with `images` (or `image`) and `system` next to the conversation

Texts are kept as written; only the placeholder is replaced by ours. LLaVA and ShareGPT sets that spell their turns
{role, content} are read as well, and any other spelling that `Reading.tags` names (LLaMA-Factory's dataset_info.json).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ixtune.data.record import ImageRef, Role, Turn
from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.choices import require_shown
from ixtune.data.schemas.draft import Draft
from ixtune.data.schemas.fields import record_hd_num, record_id, record_system, refuse_unusable, shown
from ixtune.data.schemas.image_references import images_of
from ixtune.data.schemas.turns import IMAGE, learn_in, our_text, role_in, turns_under, value_in
from ixtune.data.sources.entry import Entry
from ixtune.data.sources.source import Reading, Schema
from ixtune.data.text.conversation_rules import PLACEHOLDER

FIELD = "conversations"
TURN_KEYS = (("from", "value"), ("role", "content"))
TURN_IMAGES = ("images", "image")
"""Keys of a turn or message that hold its own images."""

# The reference treats every name except the user's as the assistant's (MODEL.md 3.2), even a misspelled "usr".
# Here an unknown name is refused.
_ROLES: dict[str, Role] = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "ai": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
}
_TAGGED_ROLES: dict[str, Role] = {"user_tag": "user", "assistant_tag": "assistant", "system_tag": "system"}


@dataclass(frozen=True, slots=True)
class _Spelling:
    """Keys, role names and placeholder of a conversation format."""

    placeholder: str
    image_fields: tuple[str, ...]
    turn_keys: tuple[tuple[str, str], ...]
    needs_id: bool
    roles: Mapping[str, Role]
    hint: str


_SPELLINGS = {
    Schema.IXC: _Spelling(
        placeholder=PLACEHOLDER,
        image_fields=("image",),
        turn_keys=TURN_KEYS[:1],
        needs_id=True,
        roles=_ROLES,
        hint='write a list such as [{"from": "user", "value": "..."}, {"from": "assistant", "value": "..."}]',
    ),
    Schema.LLAVA: _Spelling(
        placeholder=IMAGE,
        image_fields=("image",),
        turn_keys=TURN_KEYS,
        needs_id=False,
        roles=_ROLES,
        hint='write a list such as [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]',
    ),
    Schema.SHAREGPT: _Spelling(
        placeholder=IMAGE,
        image_fields=("images", "image"),
        turn_keys=TURN_KEYS,
        needs_id=False,
        roles=_ROLES,
        hint='write a list such as [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]',
    ),
}


def conversation_draft(fields: dict[str, Any], entry: Entry, reading: Reading) -> Draft:
    """Read a conversation.

    Args:
        fields: Fields of the entry; fields that are read are removed.
        entry: The entry, for messages.
        reading: Settings with the schema IXC, LLAVA or SHAREGPT.

    Raises:
        RecordError: A field is absent or wrong.
    """
    spelling = _spelling(reading.schema, reading.tags)
    name = record_id(fields, entry, needed=spelling.needs_id and ("id", "") not in reading.columns)
    fields.pop("id", None)
    images = take_images(fields, spelling.image_fields)
    refuse_unusable(fields)
    turns: list[Turn] = []
    own: list[tuple[ImageRef, ...]] = []
    rests = []
    for number, given in enumerate(turns_under(fields, FIELD, spelling.hint), start=1):
        turn, shown_here, rest = _turn(given, number, spelling)
        turns.append(turn)
        own.append(shown_here)
        rests.append(rest)
    del fields[FIELD]
    if any(rests):
        fields[FIELD] = rests
    system = record_system(fields)
    if system is not None:
        system = our_text(system, "`system`", spelling.placeholder)
    fields.pop("system", None)
    hd_num = record_hd_num(fields)
    fields.pop("hd_num", None)
    turns, images = with_images_of_turns(turns, own, images)
    require_shown(fields, turns)
    return Draft(name, images, turns, system, hd_num, written=spelling.placeholder)


def take_images(fields: dict[str, Any], names: tuple[str, ...]) -> tuple[ImageRef, ...]:
    """Remove the images from the only one of these fields that has any, and return them.

    Raises:
        RecordError: Two of them have, or one is wrong.
    """
    given = [name for name in names if name in fields and fields[name] not in (None, [], "")]
    if len(given) > 1:
        raise RecordError(
            Reason.BAD_IMAGE_FIELD,
            f"there are both `{given[0]}` and `{given[1]}`",
            hint=f"put all images into one of them, or choose one with --columns image={given[0]}",
        )
    found = images_of(fields[given[0]], given[0]) if given else ()
    for name in names:
        fields.pop(name, None)
    return found


def with_images_of_turns(
    turns: list[Turn], own: list[tuple[ImageRef, ...]], listed: tuple[ImageRef, ...]
) -> tuple[list[Turn], tuple[ImageRef, ...]]:
    """Add placeholders for images listed in turns, at the start of the turn unless its text has them.

    Args:
        turns: Turns with our placeholder.
        own: The images of each turn.
        listed: The images listed outside the turns.

    Raises:
        RecordError: There are both, an answer has images, or a turn has another number of placeholders.
    """
    if not any(own):
        return turns, listed
    if listed:
        raise RecordError(
            Reason.BAD_IMAGE_FIELD,
            "there are images in turns and images of the record",
            hint="put all of them into the turns, or all outside them",
        )
    for at, images in enumerate(own):
        turn = turns[at]
        if images and turn.role != "user":
            raise RecordError(
                Reason.PLACEHOLDER_IN_ANSWER,
                f"turn {at + 1}, which is the {turn.role}'s, has an image",
                hint="move it to the question: only the user shows images",
            )
        if images and PLACEHOLDER not in turn.text:
            turns[at] = Turn(turn.role, PLACEHOLDER * len(images) + turn.text, turn.learn)
        elif turn.text.count(PLACEHOLDER) != len(images):
            raise RecordError(
                Reason.TOO_FEW_PLACEHOLDERS,
                f"turn {at + 1} has {turn.text.count(PLACEHOLDER)} placeholders for {len(images)} images",
                hint="write one placeholder for each image of the turn, or none to have them in front of it",
            )
    return turns, tuple(image for images in own for image in images)


@lru_cache(maxsize=64)
def _spelling(schema: Schema, tags: tuple[tuple[str, str], ...]) -> _Spelling:
    """Return the spelling of a schema, with its names replaced by the tags of a dataset_info.json."""
    plain = _SPELLINGS[schema]
    if not tags:
        return plain
    named = dict(tags)
    keys = (named.get("role_tag", "from"), named.get("content_tag", "value"))
    roles = {named[tag].lower(): role for tag, role in _TAGGED_ROLES.items() if tag in named}
    return _Spelling(
        plain.placeholder, plain.image_fields, (keys,), False, {**_ROLES, **roles}, f"write turns with {keys}"
    )


def _turn(
    turn: Mapping[str, Any], number: int, spelling: _Spelling
) -> tuple[Turn, tuple[ImageRef, ...], dict[str, Any]]:
    """Return a turn, its own images, and its remaining fields."""
    keys = spelling.turn_keys
    role_key, text_key = (
        keys[0] if keys[0][0] in turn or len(keys) == 1 else next((pair for pair in keys if pair[0] in turn), keys[0])
    )
    role = role_in(turn, role_key, number, spelling.roles, spelling.hint)
    text = value_in(turn, text_key, number, spelling.hint)
    if not isinstance(text, str):
        found = f"the `{text_key}` of turn {number} is {shown(text)}"
        raise RecordError(Reason.BAD_CONVERSATIONS, found, hint=f"write the `{text_key}` as text, in quotes")
    text = our_text(text, f"turn {number}", spelling.placeholder)
    if len(turn) == 2:
        return Turn(role, text), (), {}
    rest = {key: value for key, value in turn.items() if key not in (role_key, text_key)}
    learn = learn_in(rest, number)
    images = take_images(rest, TURN_IMAGES)
    return Turn(role, text, learn), images, rest
