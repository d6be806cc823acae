"""Handle image marks in texts: inline paths, numbered placeholders, and tokens of other models.

    Picture 1: <img>a.png</img>          Qwen-VL: the image itself
    <image_1> <image 2> <|image_3|>      the first, second and third of the record's images
    <|vision_start|><|image_pad|> [IMG]  a token of another model, which cannot refer to an image here

A mark without an image is never trained as text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ixtune.data.record import ImageRef, Turn
from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.fields import shown
from ixtune.data.schemas.image_references import image_of
from ixtune.data.schemas.image_values import (
    IMAGE_SUFFIXES,
    address_in,
    embedded_in,
    is_file_of_image,
    mentioned_files,
)
from ixtune.data.schemas.named_images import file_of, is_of
from ixtune.data.text.conversation_rules import PLACEHOLDER

_INLINE = re.compile(r"<img>\s*([^<>\n]{1,4096}?)\s*</img>")
_INLINE_OR_PLACEHOLDER = re.compile(rf"{_INLINE.pattern}|({PLACEHOLDER})")
_WORD = "(?:image|img|picture|pic|photo|media)"
_NUMBERED = re.compile(rf"<\|?{_WORD}[ _-]?(\d{{1,3}})\|?>|\[{_WORD}[ _-]?(\d{{1,3}})\]", re.IGNORECASE)
# tokens of other models: no tool means them as text
_TOKENS = re.compile(
    rf"<\|/?[^<>|\n]{{0,30}}(?:{_WORD}|vision|video|audio|figure|frame)[^<>|\n]{{0,30}}/?\|>"
    rf"|<image\s*/?>|<{_WORD}(?: ?\d|[_:-])[^<>\n]{{0,200}}>"
    r"|<(?:vision|video|audio)_\w{1,20}>|<vision>|</?(?:start|begin|end)_of_(?:image|img|video)>"
    r"|<im_(?:start|end|patch)>|<\|?(?:bbox|ref-object|point-object)\d{0,3}\|?>"
    r"|\[IMG\]|\[IMG_\w{1,20}\]|\[image_(?:start|end|pad|token|break)\]",
    re.IGNORECASE,
)
# marks that are HTML, Markdown or brackets in plain text: an answer about an image may transcribe them
_PLAIN = re.compile(
    rf"</?(?:{_WORD}|figure_?\d{{1,3}}|vision|video|audio)(?:\s[^<>]{{0,2000}})?/?>"
    rf"|\[/?{_WORD}(?:[ _-]?\d{{1,3}})?(?::[^\]\n]{{0,300}})?\]"
    r"|!\[[^\]\n]{0,300}\]\([^()\n]{1,2000}\)|!\[\[[^\]\n]{1,500}\]\]|\\includegraphics\b",
    re.IGNORECASE,
)


def take_inline(turns: Sequence[Turn], images: Sequence[ImageRef]) -> tuple[list[Turn], tuple[ImageRef, ...], int]:
    """Convert `<img>path</img>` in questions to images.

    Args:
        turns: Turns with our placeholder for the images that the record lists.
        images: The images that the record lists.

    Returns:
        Turns, images in the order of all placeholders, and how many of them were inline.

    Raises:
        RecordError: The path is invalid.
    """
    listed = iter(images)
    ordered: list[ImageRef] = []
    inline = 0

    def found(match: re.Match[str]) -> str:
        nonlocal inline
        if match[1] is not None:
            inline += 1
            ordered.append(image_of(match[1], "<img>"))
        elif (one := next(listed, None)) is not None:
            ordered.append(one)
        return PLACEHOLDER

    taken = [
        replace(turn, text=_INLINE_OR_PLACEHOLDER.sub(found, turn.text)) if turn.role == "user" else turn
        for turn in turns
    ]
    return taken, (*ordered, *listed), inline


def take_numbered(turns: Sequence[Turn], images: Sequence[ImageRef]) -> tuple[list[Turn], tuple[ImageRef, ...]]:
    """Convert `<image_1>`, `<|image_2|>` and similar marks in questions to placeholders, if they number the images.

    The first mark of an image becomes its placeholder, a later one the words `image 1`.

    Args:
        turns: Turns without our placeholder.
        images: Images of the record.

    Returns:
        Turns, and the images in the order in which they are marked, unmarked ones last.
    """
    marked = [
        int(match[1] or match[2]) for turn in turns if turn.role == "user" for match in _NUMBERED.finditer(turn.text)
    ]
    if not marked:
        return list(turns), tuple(images)
    first = 0 if 0 in marked else 1
    if max(marked) - first >= len(images):
        return list(turns), tuple(images)
    order: list[int] = []

    def found(match: re.Match[str]) -> str:
        at = int(match[1] or match[2]) - first
        if at in order:
            return f"image {at + first}"
        order.append(at)
        return PLACEHOLDER

    taken = [replace(turn, text=_NUMBERED.sub(found, turn.text)) if turn.role == "user" else turn for turn in turns]
    rest = [at for at in range(len(images)) if at not in order]
    return taken, tuple(images[at] for at in (*order, *rest))


def require_no_mark(turns: Sequence[Turn], images: Sequence[ImageRef], root: Path | None = None) -> None:
    """Raise if a text contains an image mark, or names an image, that is not one of the record's images.

    An answer about an image may contain HTML, Markdown and `[image]`, as in a transcription. In a record without images
    these count too, and so does the address of an image in a short question.

    Args:
        turns: Turns with our placeholder for every image that was found.
        images: Images of the record.
        root: The image root.

    Raises:
        RecordError: `LOOKS_LIKE_IMAGE`.
    """
    for number, turn in enumerate(turns, start=1):
        text = turn.text.replace(PLACEHOLDER, " ") if PLACEHOLDER in turn.text else turn.text
        found = embedded_in(text)
        if found is None and ("<" in text or "[" in text or "\\" in text):
            mark = _TOKENS.search(text) or _INLINE.search(text)
            if mark is None and not (images and turn.role == "assistant"):
                mark = _PLAIN.search(text)
            found = mark.group() if mark else None
        if found is None and not images and turn.role == "user":
            found = address_in(text)
        if found is None:
            found = _other_image(turn, text, images, root)
        if found is None:
            continue
        where = "the system prompt" if turn.role == "system" else f"turn {number}"
        raise RecordError(
            Reason.LOOKS_LIKE_IMAGE,
            f"{where} holds {shown(found)[1:-1]}, and no image of the record belongs to it",
            hint="name the image with --columns image=FIELD and mark it <image>, write <img>path</img> into the "
            "question, or pass --allow-image-text if these characters are meant as text",
        )


def _ends_like_file(text: str) -> bool:
    return text.rstrip().lower().endswith(IMAGE_SUFFIXES)


def _other_image(turn: Turn, text: str, images: Sequence[ImageRef], root: Path | None) -> str | None:
    """Return the path of an existing image that a text names and the record does not show.

    An answer counts only if it is nothing but a path.
    """
    if turn.role == "assistant":
        named = [text.strip()] if _ends_like_file(text) and is_file_of_image(text, root) else []
    else:
        named = mentioned_files(text, root)
    for path in named:
        file = file_of(path, root) if images else None
        if file is None or not is_of(path, file, images, root):
            return path
    return None
