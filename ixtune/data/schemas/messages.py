"""Messages of {role, content}, as OpenAI's API has them and TRL's and other data sets use them.

    {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"},
                                               {"type": "image_url", "image_url": {"url": "file:///data/a.png"}}]},
                  {"role": "assistant", "content": "A receipt."}]}

A content is a text or a list of parts; parts are joined as they stand, an image wherever it stands. A part
{"type": "image"} without an image of its own takes the next of the record's `images`. Where no part is an image,
`<image>` in a text stands for the next of `images`, as many such data sets have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ixtune.data.record import ImageRef, Record, Role, Turn
from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.conversation import one_of
from ixtune.data.schemas.fields import is_missing, record_hd_num, record_id, record_system, refuse_other_media, shown
from ixtune.data.schemas.image_references import image_of
from ixtune.data.schemas.turns import IMAGE, our_text, role_in, turns_under, value_in, whole_conversation
from ixtune.data.sources.entry import Entry
from ixtune.data.text.template import PLACEHOLDER

FIELD = "messages"
IMAGE_FIELDS = ("images", "image")
MEND = 'write a list such as [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'

_ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_PARTS = ("image_url", "input_image", "image")
_IMAGE_KEYS = ("image_url", "image", "url", "path")


@dataclass(slots=True)
class _Images:
    """Those beside the messages, and those of the parts so far."""

    beside: tuple[ImageRef, ...]
    of_parts: list[ImageRef] = field(default_factory=list)
    used: set[int] = field(default_factory=set)
    next: int = 0


def messages_record(fields: Mapping[str, Any], entry: Entry, system: str | None) -> Record:
    """The record of an entry.

    Args:
        fields: What the entry holds.
        entry: Where it stands.
        system: The system prompt for records that bring none.

    Raises:
        RecordError: A field is absent or wrong.
    """
    name = record_id(fields, entry)
    images = _Images(one_of(fields, IMAGE_FIELDS))
    refuse_other_media(fields)
    messages = turns_under(fields, FIELD, MEND)
    in_parts = any(_is_image(part) for message in messages for part in _parts(message))
    written = None if in_parts else IMAGE
    turns = [_turn(message, number, images, written) for number, message in enumerate(messages, start=1)]
    shown_images = images.beside
    if in_parts:
        shown_images = tuple(images.of_parts)
        _require_all_used(images)
    own = record_system(fields)
    if own is not None:
        own = our_text(own, "`system`", written)
    whole = whole_conversation(turns, own, system, len(shown_images), IMAGE)
    return Record(name, shown_images, whole, entry.file, entry.place, record_hd_num(fields))


def _turn(message: Mapping[str, Any], number: int, images: _Images, written: str | None) -> Turn:
    role = role_in(message, "role", number, _ROLES, MEND)
    _refuse_what_would_be_lost(message, number)
    content = value_in(message, "content", number, MEND)
    if isinstance(content, str):
        return Turn(role, our_text(content, f"turn {number}", written))
    if not isinstance(content, list | tuple):
        found = f"the `content` of turn {number} is {shown(content)}"
        raise RecordError(Reason.BAD_CONVERSATIONS, found, hint=MEND)
    texts = []
    for at, part in enumerate(content, start=1):
        where = f"part {at} of turn {number}"
        if _is_image(part):
            if role != "user":
                raise RecordError(
                    Reason.PLACEHOLDER_IN_ANSWER,
                    f"{where}, which is the {role}'s, is an image",
                    hint="move it to the question: images are what the user shows",
                )
            images.of_parts.append(_image(part, where, images))
            texts.append(PLACEHOLDER)
        else:
            texts.append(our_text(_text(part, where), where, written))
    return Turn(role, "".join(texts))


def _parts(message: Mapping[str, Any]) -> list[Any]:
    content = message.get("content")
    return list(content) if isinstance(content, list | tuple) else []


def _is_image(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") in _IMAGE_PARTS


def _text(part: Any, where: str) -> str:
    hint = 'write {"type": "text", "text": "..."} or {"type": "image_url", "image_url": {"url": "..."}}'
    if not isinstance(part, Mapping):
        raise RecordError(Reason.BAD_CONVERSATIONS, f"{where} is {shown(part)}", hint=hint)
    kind = part.get("type")
    if kind not in _TEXT_PARTS:
        found = f"{where} is of the type {shown(kind)}" if "type" in part else f"{where} has no `type`"
        raise RecordError(Reason.BAD_CONVERSATIONS, found, hint=hint)
    text = part.get("text")
    if is_missing(text):
        raise RecordError(Reason.MISSING_FIELD, f"{where} has no `text`", hint=hint)
    if not isinstance(text, str):
        raise RecordError(Reason.BAD_CONVERSATIONS, f"the `text` of {where} is {shown(text)}", hint=hint)
    return text


def _image(part: Mapping[str, Any], where: str, images: _Images) -> ImageRef:
    """The image that a part holds itself, or the one beside the messages that it stands for."""
    for key in _IMAGE_KEYS:
        value = part.get(key)
        if is_missing(value):
            continue
        if key == "image_url" and isinstance(value, Mapping):
            value = value.get("url")
        return image_of(value, where)
    if part.get("type") != "image":
        raise RecordError(
            Reason.BAD_IMAGE_FIELD,
            f"{where} names no image: {shown(part)}",
            hint='write {"type": "image_url", "image_url": {"url": "..."}} with a path or a data: address',
        )
    at = part.get("index")
    if is_missing(at):
        at = images.next
        images.next += 1
    if not isinstance(at, int) or isinstance(at, bool) or at < 0:
        found = f"the `index` of {where} is {shown(at)}"
        raise RecordError(Reason.BAD_IMAGE_FIELD, found, hint="leave it out: images are taken in their order")
    if at >= len(images.beside):
        raise RecordError(
            Reason.TOO_MANY_PLACEHOLDERS,
            f"{where} asks for image {at + 1} of `images`, which holds {len(images.beside)}",
            hint="give `images` one image for each such part",
        )
    images.used.add(at)
    return images.beside[at]


def _require_all_used(images: _Images) -> None:
    if len(images.used) != len(images.beside):
        raise RecordError(
            Reason.TOO_FEW_PLACEHOLDERS,
            f"{len(images.used)} of the {len(images.beside)} images of `images` are shown",
            hint='put a part {"type": "image"} where each of them belongs',
        )


def _refuse_what_would_be_lost(message: Mapping[str, Any], number: int) -> None:
    """Tool calls, and answers that are not to be trained: left out or trained, the record would be another."""
    for key in ("tool_calls", "function_call"):
        if message.get(key):
            raise RecordError(
                Reason.BAD_FIELD,
                f"turn {number} has `{key}`",
                hint="take such records out: tools cannot be trained here",
            )
    if message.get("weight") == 0 and message.get("role") == "assistant":
        raise RecordError(
            Reason.BAD_FIELD,
            f"turn {number} has the weight 0, but all answers are trained here",
            hint="take the turn out, or end the conversation before it",
        )
