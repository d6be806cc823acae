r"""Conversations of {from, value}: InternLM-XComposer's own form, LLaVA's, and ShareGPT's.

    IXC       {"id": "7", "image": ["a.png"], "conversations": [{"from": "user", "value": "<ImageHere>What is it?"},
                                                                {"from": "assistant", "value": "A receipt."}]}
    LLaVA     {"id": "7", "image": "a.png", "conversations": [{"from": "human", "value": "<image>\nWhat is it?"},
                                                              {"from": "gpt", "value": "A receipt."}]}
    ShareGPT  as LLaVA, with `images` (or `image`) and `system` beside the conversation

Texts stay as they are written; only the placeholder becomes ours. LLaVA and ShareGPT sets that spell their turns
{role, content} are read as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ixtune.data.record import ImageRef, Record, Role, Turn
from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.fields import record_hd_num, record_id, record_system, refuse_other_media, shown
from ixtune.data.schemas.image_references import images_of
from ixtune.data.schemas.turns import IMAGE, our_text, role_in, turns_under, value_in, whole_conversation
from ixtune.data.sources.entry import Entry
from ixtune.data.sources.source import Schema
from ixtune.data.text.template import PLACEHOLDER

FIELD = "conversations"
TURN_KEYS = (("from", "value"), ("role", "content"))

# The reference takes every name but the user's as the assistant's (MODEL.md 3.2), a misspelt "usr" included.
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


@dataclass(frozen=True, slots=True)
class _Form:
    """How one of the three is written."""

    placeholder: str
    image_fields: tuple[str, ...]
    turn_keys: tuple[tuple[str, str], ...]
    needs_id: bool
    has_system: bool
    hint: str


_FORMS = {
    Schema.IXC: _Form(
        placeholder=PLACEHOLDER,
        image_fields=("image",),
        turn_keys=TURN_KEYS[:1],
        needs_id=True,
        has_system=False,
        hint='write a list such as [{"from": "user", "value": "..."}, {"from": "assistant", "value": "..."}]',
    ),
    Schema.LLAVA: _Form(
        placeholder=IMAGE,
        image_fields=("image",),
        turn_keys=TURN_KEYS,
        needs_id=False,
        has_system=False,
        hint='write a list such as [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]',
    ),
    Schema.SHAREGPT: _Form(
        placeholder=IMAGE,
        image_fields=("images", "image"),
        turn_keys=TURN_KEYS,
        needs_id=False,
        has_system=True,
        hint='write a list such as [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]',
    ),
}


def conversation_record(fields: Mapping[str, Any], entry: Entry, schema: Schema, system: str | None) -> Record:
    """The record of an entry.

    Args:
        fields: What the entry holds.
        entry: Where it stands.
        schema: IXC, LLAVA or SHAREGPT.
        system: The system prompt for records that bring none.

    Raises:
        RecordError: A field is absent or wrong.
    """
    form = _FORMS[schema]
    name = record_id(fields, entry, needed=form.needs_id)
    images = one_of(fields, form.image_fields)
    refuse_other_media(fields)
    turns = [_turn(turn, number, form) for number, turn in enumerate(turns_under(fields, FIELD, form.hint), start=1)]
    own = record_system(fields) if form.has_system else None
    if own is not None:
        own = our_text(own, "`system`", form.placeholder)
    whole = whole_conversation(turns, own, system, len(images), form.placeholder)
    return Record(name, images, whole, entry.file, entry.place, record_hd_num(fields))


def one_of(fields: Mapping[str, Any], names: tuple[str, ...]) -> tuple[ImageRef, ...]:
    """The images of a record, from the one field of several that has any.

    Raises:
        RecordError: Two of them have, or one is wrong.
    """
    given = [name for name in names if fields.get(name) not in (None, [])]
    if len(given) > 1:
        raise RecordError(
            Reason.BAD_IMAGE_FIELD,
            f"there are both `{given[0]}` and `{given[1]}`",
            hint="put all images into one of them",
        )
    return images_of(fields[given[0]], given[0]) if given else ()


def _turn(turn: Mapping[str, Any], number: int, form: _Form) -> Turn:
    role_key, text_key = next((keys for keys in form.turn_keys if keys[0] in turn), form.turn_keys[0])
    role = role_in(turn, role_key, number, _ROLES, form.hint)
    text = value_in(turn, text_key, number, form.hint)
    if not isinstance(text, str):
        found = f"the `{text_key}` of turn {number} is {shown(text)}"
        raise RecordError(Reason.BAD_CONVERSATIONS, found, hint=form.hint)
    return Turn(role, our_text(text, f"turn {number}", form.placeholder))
