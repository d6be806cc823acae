"""Load the questions to answer: one from the command line, a file, one for each of many images, or a prepared set.

A file of questions is read as `ixtune prepare` reads a source: JSON Lines, CSV, conversations and all other forms. An
answer is not needed; the last answer of a conversation is left out.
"""

from __future__ import annotations

import atexit
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ixtune.answering.prompt import Prompt
from ixtune.data.benchmarks.item import reject_of
from ixtune.data.image_arguments import argument_reader, image_argument
from ixtune.data.image_reader import ImageReader, with_pages
from ixtune.data.images.documents import split_pages
from ixtune.data.images.image_paths import locate
from ixtune.data.images.pixels import NONE, Corrections
from ixtune.data.prepared import store
from ixtune.data.prepared.image_files import ImageFiles
from ixtune.data.record import ImageRef, Turn
from ixtune.data.rejects import Reason, RecordError, Reject
from ixtune.data.schemas.record_reader import name_of, record_of
from ixtune.data.sources.source import REPEATED_IDS, Source
from ixtune.data.sources.source_loader import open_source
from ixtune.data.text.conversation_rules import PLACEHOLDER
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.errors import IxtuneError
from ixtune.family import FOUR_KHD, Member


@dataclass(frozen=True, slots=True)
class ImageView:
    """Settings for opening images and computing their layouts.

    Attributes:
        hd_num: Maximum number of crops per image.
        upscale: Whether small images are enlarged to fill hd_num.
        corrections: Deviations from how the reference opens them.
        member: The model, with its layout rule.
        hd_num_among: Maximum number of crops per image when a prompt has several; None for `hd_num`.
        dpi: Resolution of PDF pages; None for the one that fills their layouts.
    """

    hd_num: int
    upscale: bool = True
    corrections: Corrections = NONE
    member: Member = FOUR_KHD
    hd_num_among: int | None = None
    dpi: int | None = None

    def of(self, images: int) -> ImageView:
        """Return the settings for each image of a prompt with this number of images."""
        among = self.hd_num_among if images > 1 else None
        return self if among is None else replace(self, hd_num=among)


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt to answer, and its name."""

    id: str
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions to answer.

    Attributes:
        questions: Questions in the order of their source.
        files: Locations of their images.
        rejects: Entries of the source that cannot be asked.
    """

    questions: tuple[Question, ...]
    files: ImageFiles
    rejects: tuple[Reject, ...] = ()


def require_given(source: Path | None, images: Sequence[str | Path] = ()) -> None:
    """Raise if an image or question file is missing, before anything is loaded.

    Raises:
        IxtuneError: There is no such file or folder, or an image is a network URL.
    """
    for image in images:
        given = image_argument(image).path or ""
        if not any(Path(path).exists() for path in (given, split_pages(given)[0])):
            locate(Path("/"), split_pages(given)[0])
    if source is not None and not source.exists():
        raise IxtuneError(
            "there is no such file of questions, folder of images or prepared set",
            where=str(source),
            hint="check the path",
        )


def prompt_of(question: str, images: Sequence[str | Path], view: ImageView, earlier: Sequence[Turn] = ()) -> Prompt:
    """Return a prompt about images anywhere on this machine; without a placeholder they are put before the question.

    Args:
        question: Text, optionally with `<ImageHere>` at the position of each image.
        images: Paths; of a PDF all pages are shown, or those after `#page=`.
        view: Settings for the image layouts.
        earlier: Turns that precede the question.

    Raises:
        RecordError: An image cannot be read, or has no layout at this hd_num.
    """
    turns = [Turn("user", with_placeholders(question, len(images)))]
    reader = argument_reader(view.corrections, view.dpi)
    made = _prompt(reader, view, turns, [image_argument(image) for image in images])
    shown = tuple(image | {"path": f"/{image['path']}"} for image in made.images)
    return Prompt((*earlier, *made.turns), shown)


def with_placeholders(question: str, images: int) -> str:
    """Return the question with placeholders for its images in front, unless it contains some."""
    return question if PLACEHOLDER in question else PLACEHOLDER * images + question


def _prompt(
    reader: ImageReader, view: ImageView, turns: Sequence[Turn], images: Sequence[ImageRef], hd_num: int | None = None
) -> Prompt:
    """Return the prompt for turns that end with a question.

    Raises:
        RecordError: An image cannot be read, or has no layout.
    """
    shown = [reader.read(image) for image in images]
    most = hd_num or view.of(sum(len(pages) for pages in shown)).hd_num
    stored = [
        dict(reader.store(one, one.layout(most, upscale=view.upscale, member=view.member)))
        for pages in shown
        for one in pages
    ]
    return Prompt(with_pages(turns, [len(pages) for pages in shown]), tuple(stored))


def from_set(prepared: store.PreparedSet) -> Asked:
    """Return the last question of every record of a prepared set, with the images laid out as they were prepared."""
    questions = []
    for record in prepared.dataset:
        *before, _ = record["turns"]
        turns = tuple(Turn(turn["role"], turn["text"]) for turn in before)
        questions.append(Question(record["id"], Prompt(turns, tuple(record["pictures"]))))
    return Asked(tuple(questions), prepared.files)


def from_file(source: Source, view: ImageView, tokenizer: Tokenizer, folder: Path | None = None) -> Asked:
    """Read questions as `prepare` reads a source; an entry that cannot be asked becomes a reject.

    Args:
        source: Source of the questions; answers are not needed.
        view: Settings for the image layouts.
        tokenizer: The base's, to reject questions that the template refuses before any is answered.
        folder: Folder for images that the source contains; created if needed. None for a temporary one.

    Raises:
        IxtuneError: The source cannot be read or understood, or holds no record.
    """
    opened = open_source(replace(source, answers=False))
    root = opened.image_root or Path(source.path).resolve().parent
    folder = folder or _temporary_folder()
    reader = ImageReader(root, 1, folder / store.IMAGES, corrections=view.corrections, dpi=view.dpi, render=False)
    questions: list[Question] = []
    names: set[str] = set()
    rejects: list[Reject] = []
    for entry in opened.entries():
        name = None
        try:
            record = record_of(entry, opened.reading)
            name = record.id
            if opened.schema not in REPEATED_IDS:
                _require_new(name, names)
            turns = _up_to_the_question(record.turns)
            prompt = _prompt(reader, view, turns, record.images, record.hd_num)
            prompt.ids(tokenizer)
            questions.append(Question(name, prompt))
            names.add(name)
        except RecordError as error:
            known = name or name_of(entry, opened.reading)
            rejects.append(reject_of(error, entry.file, entry.place, entry.number, known))
    return Asked(tuple(questions), ImageFiles((folder, root), view.corrections), tuple(rejects))


def from_images(question: str, images: Sequence[str], view: ImageView, tokenizer: Tokenizer) -> Asked:
    """Ask one question about each of many images; one that cannot be opened becomes a reject.

    Args:
        question: Text, optionally with `<ImageHere>` at the position of the image.
        images: Paths, as they are to be named in the answers; all pages of a document are shown together.
        view: Settings for the image layouts.
        tokenizer: The base's.
    """
    questions: dict[str, Question] = {}
    rejects: list[Reject] = []
    for number, image in enumerate(images, start=1):
        try:
            made = prompt_of(question, [image], view)
            named = tuple(one | {"name": one["name"] or image} for one in made.images)
            prompt = Prompt(made.turns, named)
            prompt.ids(tokenizer)
            questions[image] = Question(image, prompt)
        except RecordError as error:
            rejects.append(reject_of(error, image, None, number, image))
    return Asked(tuple(questions.values()), ImageFiles((Path("/"),), view.corrections), tuple(rejects))


def _temporary_folder() -> Path:
    """Return a folder that does not exist yet and is removed when this process ends."""
    folder = Path(tempfile.gettempdir(), f"ixtune-{secrets.token_hex(8)}")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _up_to_the_question(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Return the turns up to the last question."""
    last = max((at for at, turn in enumerate(turns) if turn.role == "user"), default=None)
    if last is None:
        raise RecordError(Reason.MISSING_FIELD, "there is no question", hint="add a user turn")
    return tuple(turns[: last + 1])


def _require_new(name: str, known: set[str]) -> None:
    if name in known:
        raise RecordError(Reason.DUPLICATE_ID, f"the id {name} occurs twice", hint="give it another id")


def names_of(images: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the name of each image of a prompt."""
    return map(store.name_of_image, images)
