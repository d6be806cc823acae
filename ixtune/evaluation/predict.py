"""One question about some pictures, answered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ixtune.data.header import read_header
from ixtune.data.pixels import NONE, Corrections
from ixtune.data.record import Turn
from ixtune.data.store import PictureFiles, stored_picture
from ixtune.data.template import PLACEHOLDER
from ixtune.errors import UsageError
from ixtune.evaluation.generate import Answerer, Prompt
from ixtune.evaluation.session import Loaded
from ixtune.layout import LayoutError, plan
from ixtune.training.batch import PictureSource


def prompt_of(
    question: str, images: Sequence[Path], hd_num: int, upscale: bool = True, corrections: Corrections = NONE
) -> Prompt:
    """A prompt in the training template; pictures without a placeholder stand before the question.

    Raises:
        UsageError: a picture has no layout at this hd_num.
        PictureError: a picture cannot be read.
    """
    pictures = []
    for path in images:
        header = read_header(path, corrections, name=str(path))
        try:
            layout = plan(header.width, header.height, hd_num, upscale=upscale)
        except LayoutError as error:
            raise UsageError(
                f"no layout for {header.width}x{header.height} at hd_num {hd_num}: {error}",
                where=str(path),
                mend="crop the picture to a less extreme shape, or raise --hd-num",
            ) from error
        pictures.append(stored_picture(0, str(path.resolve()), layout))
    text = question if PLACEHOLDER in question else PLACEHOLDER * len(images) + question
    return Prompt((Turn("user", text),), tuple(pictures))


def predict(loaded: Loaded, question: str, images: Sequence[Path], hd_num: int, max_new_tokens: int) -> str:
    """The greedy answer; pictures are opened and laid out as the adapter was trained, but for `hd_num`."""
    prompt = prompt_of(question, images, hd_num, loaded.upscale, loaded.corrections)
    pictures = PictureSource(PictureFiles((Path(),), loaded.corrections))  # the prompt's paths are absolute
    answerer = Answerer(loaded.model, loaded.tokenizer, pictures.of, max_new_tokens)
    with loaded.autocast():
        return answerer([prompt])[0]
