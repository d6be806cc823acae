"""Questions to be answered: one on the command line, a file of them, or a prepared set.

A file holds one JSON object a line: `question` (text), `image` or `images` (paths relative to the image root; where the
question has no <ImageHere> they stand before it), and `id` (default: the number of the line).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ixtune.answering.prompt import Prompt
from ixtune.data.benchmarks.item import reject_of
from ixtune.data.containers.json_text import decoded, line_entries
from ixtune.data.images.header import read_header
from ixtune.data.images.image_paths import inside
from ixtune.data.images.pixels import NONE, Corrections
from ixtune.data.prepared import store
from ixtune.data.record import Turn
from ixtune.data.rejects import Reason, RecordError, Reject
from ixtune.data.text.template import PLACEHOLDER
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.errors import IxtuneError
from ixtune.family import FOUR_KHD, Member
from ixtune.layout import LayoutError, PatchLayout, plan


@dataclass(frozen=True, slots=True)
class View:
    """How images are laid out and opened.

    Attributes:
        hd_num: The most crops.
        upscale: Whether small images are enlarged to fill hd_num.
        corrections: Departures from the reference's way of opening.
        member: The model, with its layout rule.
        hd_num_among: The most crops of each of several images; None for `hd_num`.
    """

    hd_num: int
    upscale: bool = True
    corrections: Corrections = NONE
    member: Member = FOUR_KHD
    hd_num_among: int | None = None

    def of(self, images: int) -> View:
        """Return how each image of a prompt with this number of images is laid out."""
        among = self.hd_num_among if images > 1 else None
        return self if among is None else replace(self, hd_num=among)


@dataclass(frozen=True, slots=True)
class Question:
    """Something to answer, and the name it goes by."""

    id: str
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions, where their images lie, and the lines that are none."""

    questions: tuple[Question, ...]
    files: store.ImageFiles
    rejects: tuple[Reject, ...] = ()


def require_given(source: Path | None, images: Sequence[Path] = ()) -> None:
    """Refuse images that are not there, and questions: neither a file of them nor a prepared set.

    Raises:
        IxtuneError: It is neither, or one of them is not there.
    """
    for image in images:
        if not image.is_file():
            raise IxtuneError("there is no such image", where=str(image), hint="check the path")
    if source is None:
        return
    if source.is_dir():
        store.require(source)
    elif not source.exists():
        raise IxtuneError(
            "there is no such file of questions or prepared set", where=str(source), hint="check the path"
        )


def prompt_of(question: str, images: Sequence[Path], view: View, earlier: Sequence[Turn] = ()) -> Prompt:
    """A prompt about images anywhere on this machine; without a placeholder they stand before the question.

    Raises:
        RecordError: an image cannot be read, or has no layout at this hd_num.
    """
    view = view.of(len(images))
    laid_out = [_laid_out(0, str(path.resolve()), path, str(path), view) for path in images]
    return Prompt((*earlier, Turn("user", with_placeholders(question, len(images)))), tuple(laid_out))


def with_placeholders(question: str, images: int) -> str:
    """The question with its images in front, if it does not say where they stand."""
    return question if PLACEHOLDER in question else PLACEHOLDER * images + question


def from_set(prepared: store.PreparedSet) -> Asked:
    """The last question of every record, with the images laid out as they were prepared."""
    questions = []
    for record in prepared.dataset:
        *before, _ = record["turns"]
        turns = tuple(Turn(turn["role"], turn["text"]) for turn in before)
        questions.append(Question(record["id"], Prompt(turns, tuple(record["pictures"]))))
    return Asked(tuple(questions), prepared.files)


def from_file(path: Path, image_root: Path | None, view: View, tokenizer: Tokenizer) -> Asked:
    """Read a file of questions; a line that cannot be asked becomes a reject.

    Args:
        path: JSON Lines.
        image_root: What paths are relative to and never lead out of; None for the folder of the file.
        view: Of the images.
        tokenizer: The base's, to find what the template does not take before anything is answered.

    Raises:
        IxtuneError: the file cannot be read, or holds no line.
    """
    root = (image_root or path.parent).resolve()
    if not root.is_dir():
        raise IxtuneError("there is no such folder", where=str(root), hint="give the folder of the images")
    questions: dict[str, Question] = {}
    rejects = []
    try:
        for entry in line_entries(path):
            name = None
            try:
                value, fault = decoded(entry)
                if fault is not None:
                    raise RecordError(fault.reason, fault.found, hint=fault.hint)
                name, text, images = _fields(value, entry.place.at)
                if name in questions:
                    raise RecordError(Reason.DUPLICATE_ID, f"the id {name} was there before", hint="give it another")
                laid_out = [_laid_out(0, *inside(root, image), image, view.of(len(images))) for image in images]
                prompt = Prompt((Turn("user", with_placeholders(text, len(images))),), tuple(laid_out))
                prompt.ids(tokenizer)
                questions[name] = Question(name, prompt)
            except RecordError as error:
                rejects.append(reject_of(error, entry.file, entry.place, entry.number, name))
    except OSError as error:
        raise IxtuneError(
            f"the questions cannot be read: {error.strerror or error}", where=str(path), hint="check the path"
        ) from error
    if not questions and not rejects:
        raise IxtuneError("the file holds no question", where=str(path), hint="write one JSON object a line")
    return Asked(tuple(questions.values()), store.ImageFiles((root,), view.corrections), tuple(rejects))


def _fields(value: Any, line: int | str) -> tuple[str, str, list[str]]:
    """id, question and image paths of one line."""
    if not isinstance(value, dict):
        raise RecordError(Reason.NOT_A_RECORD, "the line is not a JSON object", hint='write {"question": ...}')
    name = value.get("id", str(line))
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise RecordError(Reason.BAD_ID, f"the id is {name!r}", hint="write a text or a whole number, or leave it out")
    text = value.get("question")
    if not isinstance(text, str) or not text.strip():
        raise RecordError(Reason.MISSING_FIELD, "there is no text in `question`", hint="write the question there")
    images = value.get("images", [value["image"]] if value.get("image") is not None else [])
    if not isinstance(images, list) or not all(isinstance(image, str) and image for image in images):
        raise RecordError(
            Reason.BAD_IMAGE_FIELD, "`image` is no path, or `images` no list of paths", hint="write paths of images"
        )
    return str(name), text, images


def layout_of_file(path: Path, name: str, view: View) -> PatchLayout:
    """How an image is laid out, by its header.

    Args:
        path: The file.
        name: What to call it in messages.
        view: How to lay it out.

    Raises:
        RecordError: it cannot be read, or has no layout.
    """
    header = read_header(path, view.corrections, name=name)
    try:
        return plan(header.width, header.height, view.hd_num, upscale=view.upscale, member=view.member)
    except LayoutError as error:
        raise RecordError(
            Reason.NO_LAYOUT,
            f"no layout for {header.width}x{header.height} at hd_num {view.hd_num}: {error}",
            where=name,
            hint="crop the image to a less extreme shape, or raise --hd-num",
        ) from error


def _laid_out(root: int, stored: str, path: Path, name: str, view: View) -> dict[str, Any]:
    """An image as a prepared set would store it."""
    return store.stored_image(root, stored, layout_of_file(path, name, view))
