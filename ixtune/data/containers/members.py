"""Combine the members of one sample of a tar into the fields of a record."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from ixtune.data.containers.image_folder import IMAGE_ENDINGS
from ixtune.data.containers.json_stream import unique_names
from ixtune.data.rejects import Reason
from ixtune.data.schemas.fields import listed, shown
from ixtune.data.sources.entry import Fault

PICTURES = tuple(ending.removeprefix(".") for ending in IMAGE_ENDINGS)
"""Suffixes of image members."""
KINDS = (*PICTURES, "json", "txt", "text", "caption")
"""Suffixes of all members that are read."""

_CONVERSATIONS = ("conversations", "messages")
_IMAGE_FIELDS = ("image", "images")
_IMAGE_PARTS = ("image", "image_url", "input_image")
_IMAGE_KEYS = ("image", "url", "path")


def kind_of(ending: str) -> str:
    """Return the last part of an ending: jpg of front.jpg."""
    return ending.rpartition(".")[2]


def fields_of_members(key: str, members: Mapping[str, tuple[str, bytes]]) -> tuple[dict[str, Any], Fault | None]:
    """Return the fields of a record, or the fault of its members.

    Args:
        key: Common prefix of the member names.
        members: Ending, such as jpg or front.jpg -> the full name and the content.
    """
    images = [
        {"bytes": content, "path": name} for ending, (name, content) in members.items() if kind_of(ending) in PICTURES
    ]
    fields: dict[str, Any] = {}
    for ending, (name, content) in members.items():
        if kind_of(ending) not in PICTURES and (fault := _read_into(fields, ending, content, name)):
            return {}, fault
    return fields, _place_images(fields, key, images)


def _read_into(fields: dict[str, Any], ending: str, content: bytes, name: str) -> Fault | None:
    """Add the fields of a JSON member, or the text of a text member."""
    column, _, kind = ending.rpartition(".")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"{shown(name)} holds the byte 0x{error.object[error.start]:02X}, which is not UTF-8"
        return Fault(Reason.NOT_UTF8, found, "save the text as UTF-8")
    if kind != "json":
        said: Any = {column or "text": text}
    else:
        try:
            said = json.loads(text, object_pairs_hook=unique_names)
        except (ValueError, RecursionError) as error:
            return Fault(Reason.NOT_JSON, f"{shown(name)}: {error}", "write the sample again with a JSON library")
        if not isinstance(said, dict):
            return Fault(Reason.NOT_A_RECORD, f"{shown(name)} is {shown(said)}", 'write an object, {"question": ...}')
    for twice in sorted(said.keys() & fields.keys()):  # in the same order in every process
        if said[twice] != fields[twice]:
            found = f"two members set `{twice}`; {shown(name)} is the second"
            return Fault(Reason.BAD_FIELD, found, "keep one of them")
    fields.update(said)
    return None


def _place_images(fields: dict[str, Any], key: str, images: list[dict[str, Any]]) -> Fault | None:
    """Put the images in the fields that name them, or else under `image`, in member order."""
    named = list(_naming_parts(fields.get("messages")))
    image_field = next((name for name in _IMAGE_FIELDS if _names(fields.get(name))), None)
    if images and named:
        chosen, fault = _matching([holder[name] for holder, name in named], key, images)
        for (holder, name), image in zip(named, chosen, strict=fault is None):
            holder[name] = image
        return fault
    if images and image_field is not None:
        images, fault = _matching(_names(fields[image_field]), key, images)
        if fault:
            return fault
    is_conversation = any(name in fields for name in _CONVERSATIONS)
    if images or not (image_field or is_conversation):  # rows of a table always have it
        for name in _IMAGE_FIELDS:
            fields.pop(name, None)
        fields["image"] = images
    return None


def _matching(names: list[str], key: str, images: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], Fault | None]:
    """Return the images that some names refer to: whole names of members, without folders, or without the key."""
    of_name: dict[str, dict[str, Any]] = {}
    for image in images:
        path = str(image["path"])
        for name in (path, PurePosixPath(path).name, path.removeprefix("./").removeprefix(f"{key}.")):
            of_name.setdefault(name, image)
    chosen = [of_name.get(name) or of_name.get(PurePosixPath(name).name) for name in names]
    found = [one for one in chosen if one is not None]
    if len(found) == len(names):
        return found, None
    if len(names) == len(images) == 1:  # it was renamed when it was packed
        return images, None
    return [], Fault(
        Reason.PICTURE_MISSING,
        f"the JSON names {listed(names)}; the sample has {listed(image['path'] for image in images)}",
        "name the members of the sample, or none of them",
    )


def _names(value: Any) -> list[str]:
    """Return the paths in an image field, none if it holds anything else."""
    values = value if isinstance(value, list) else [value]
    paths = [one.get("path") if isinstance(one, dict) else one for one in values]
    named = [path for path in paths if isinstance(path, str) and path]
    return named if len(named) == len(paths) else []


def _naming_parts(messages: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield where content parts of messages name an image: the object, and the field with the name."""
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if not isinstance(part, dict) or part.get("type") not in _IMAGE_PARTS:
                continue
            inside = part.get("image_url")
            places = [(inside, "url") if isinstance(inside, dict) else (part, "image_url")]
            for holder, name in (*places, *((part, name) for name in _IMAGE_KEYS)):
                if isinstance(holder.get(name), str) and not holder[name].lower().startswith("data:"):
                    yield holder, name
                    break
