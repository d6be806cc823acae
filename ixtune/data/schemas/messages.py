"""Read messages of {role, content}, the format of OpenAI's API that TRL, ms-swift and other datasets use.

    {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"},
                                               {"type": "image_url", "image_url": {"url": "file:///data/a.png"}}]},
                  {"role": "assistant", "content": "A receipt."}]}

A content is a text or a list of parts; parts are joined in their order, images included. A part
{"type": "image"} without an image of its own takes the next of the record's `images`. Where no part is an image,
`<image>` in a text refers to the next of `images`, as in many such datasets. Consecutive user messages, which
OpenAI's own vision examples have, are joined.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ixtune.data.record import ImageRef, Role, Turn
from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.choices import require_shown
from ixtune.data.schemas.conversation import TURN_IMAGES, take_images, with_images_of_turns
from ixtune.data.schemas.draft import Draft
from ixtune.data.schemas.fields import is_missing, record_hd_num, record_id, record_system, refuse_unusable, shown
from ixtune.data.schemas.image_references import image_of
from ixtune.data.schemas.turns import IMAGE, learn_in, our_text, role_in, turns_under, value_in
from ixtune.data.sources.entry import Entry
from ixtune.data.sources.source import Reading
from ixtune.data.text.conversation_rules import PLACEHOLDER

FIELD = "messages"
IMAGE_FIELDS = ("images", "image")
HINT = 'write a list such as [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'

_ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_PARTS = ("image_url", "input_image", "image")
_IMAGE_KEYS = ("image_url", "image", "url", "path", "source")


@dataclass(slots=True)
class _Images:
    """The images listed next to the messages, and those in the content parts read so far."""

    listed: tuple[ImageRef, ...]
    of_parts: list[ImageRef] = field(default_factory=list)
    used: set[int] = field(default_factory=set)
    next: int = 0


def messages_draft(fields: dict[str, Any], entry: Entry, reading: Reading) -> Draft:
    """Read a conversation of messages.

    Args:
        fields: Fields of the entry; fields that are read are removed.
        entry: The entry, for messages.
        reading: Settings of the source.

    Raises:
        RecordError: A field is absent or wrong.
    """
    del reading
    name = record_id(fields, entry)
    fields.pop("id", None)
    images = _Images(take_images(fields, IMAGE_FIELDS))
    refuse_unusable(fields)
    messages = turns_under(fields, FIELD, HINT)
    in_parts = any(_is_image(part) for message in messages for part in _parts(message))
    written = None if in_parts else IMAGE
    rests = [dict(message) for message in messages]
    turns = [_turn(rest, number, images, written) for number, rest in enumerate(rests, start=1)]
    own = [take_images(rest, TURN_IMAGES) if rest else () for rest in rests]
    fields.pop(FIELD)
    if any(rests):
        fields[FIELD] = rests
    shown_images = images.listed
    if in_parts:
        shown_images = tuple(images.of_parts)
        _require_all_used(images)
    turns, shown_images = with_images_of_turns(turns, own, shown_images)
    system = record_system(fields)
    if system is not None:
        system = our_text(system, "`system`", written)
    fields.pop("system", None)
    hd_num = record_hd_num(fields)
    fields.pop("hd_num", None)
    joined = _joined(turns)
    require_shown(fields, turns)
    notes = ["questions_joined"] if len(joined) < len(turns) else []
    return Draft(name, shown_images, joined, system, hd_num, notes=notes)


def _joined(turns: list[Turn]) -> list[Turn]:
    """Join consecutive user turns, one line each."""
    joined: list[Turn] = []
    for turn in turns:
        if joined and turn.role == joined[-1].role == "user":
            joined[-1] = Turn("user", f"{joined[-1].text}\n{turn.text}", joined[-1].learn)
        else:
            joined.append(turn)
    return joined


def _turn(message: dict[str, Any], number: int, images: _Images, written: str | None) -> Turn:
    """Return a turn; fields of the message that are read are removed."""
    role = role_in(message, "role", number, _ROLES, HINT)
    _refuse_calls(message, number)
    learn = learn_in(message, number)
    content = value_in(message, "content", number, HINT)
    del message["role"], message["content"]
    if isinstance(content, str):
        return Turn(role, our_text(content, f"turn {number}", written), learn)
    if not isinstance(content, list | tuple):
        found = f"the `content` of turn {number} is {shown(content)}"
        raise RecordError(Reason.BAD_CONVERSATIONS, found, hint="write the `content` as text, in quotes")
    texts, rests = [], []
    for at, part in enumerate(content, start=1):
        where = f"part {at} of turn {number}"
        if _is_image(part):
            if role != "user":
                raise RecordError(
                    Reason.PLACEHOLDER_IN_ANSWER,
                    f"{where}, which is the {role}'s, is an image",
                    hint="move it to the question: only the user shows images",
                )
            images.of_parts.append(_image(part, where, images))
            texts.append(PLACEHOLDER)
        else:
            texts.append(our_text(_text(part, where), where, written))
            rests.append({name: value for name, value in part.items() if name not in ("type", "text") and value})
    if any(rests):
        message["content"] = rests
    return Turn(role, "".join(texts), learn)


def _parts(message: Mapping[str, Any]) -> list[Any]:
    content = message.get("content")
    return list(content) if isinstance(content, list | tuple) else []


def _is_image(part: Any) -> bool:
    """Return whether a part is an image; Qwen's parts have no type, only {"image": ...} or {"text": ...}."""
    if not isinstance(part, Mapping):
        return False
    kind = part.get("type")
    return kind in _IMAGE_PARTS if kind is not None else any(part.get(key) for key in _IMAGE_KEYS)


def _text(part: Any, where: str) -> str:
    hint = 'write {"type": "text", "text": "..."} or {"type": "image_url", "image_url": {"url": "..."}}'
    if not isinstance(part, Mapping):
        raise RecordError(Reason.BAD_CONVERSATIONS, f"{where} is {shown(part)}", hint=hint)
    kind = part.get("type", "text" if "text" in part else None)
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
    """Return the image that a part holds, or the image listed next to the messages that it refers to."""
    for key in _IMAGE_KEYS:
        value = part.get(key)
        if is_missing(value):
            continue
        if key == "image_url" and isinstance(value, Mapping):
            value = value.get("url")
        if key == "source" and isinstance(value, Mapping):  # Anthropic's parts
            kind, data = value.get("media_type", "image/png"), value.get("data")
            value = value.get("url") if data is None else f"data:{kind};base64,{data}"
        return image_of(value, where)
    if part.get("type") not in ("image", None):
        raise RecordError(
            Reason.BAD_IMAGE_FIELD,
            f"{where} names no image: {shown(part)}",
            hint='write {"type": "image_url", "image_url": {"url": "..."}} with a path or a data: URL',
        )
    at = part.get("index")
    if is_missing(at):
        at = images.next
        images.next += 1
    if not isinstance(at, int) or isinstance(at, bool) or at < 0:
        found = f"the `index` of {where} is {shown(at)}"
        raise RecordError(Reason.BAD_IMAGE_FIELD, found, hint="leave it out: images are taken in their order")
    if at >= len(images.listed):
        raise RecordError(
            Reason.TOO_MANY_PLACEHOLDERS,
            f"{where} refers to image {at + 1} of `images`, which holds {len(images.listed)}",
            hint="give `images` one image for each such part",
        )
    images.used.add(at)
    return images.listed[at]


def _require_all_used(images: _Images) -> None:
    if len(images.used) != len(images.listed):
        raise RecordError(
            Reason.TOO_FEW_PLACEHOLDERS,
            f"{len(images.used)} of the {len(images.listed)} images of `images` are shown",
            hint='put a part {"type": "image"} where each of them belongs',
        )


def _refuse_calls(message: Mapping[str, Any], number: int) -> None:
    """Raise for tool calls, which cannot be trained here."""
    for key in ("tool_calls", "function_call"):
        if message.get(key):
            raise RecordError(
                Reason.BAD_FIELD,
                f"turn {number} has `{key}`",
                hint="remove such records: tools cannot be trained here",
            )
