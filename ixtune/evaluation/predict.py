"""One question about some pictures, answered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ixtune.data.pixels import read_size
from ixtune.data.record import Turn
from ixtune.errors import UsageError
from ixtune.evaluation.generate import Answerer, Prompt
from ixtune.evaluation.session import Loaded
from ixtune.layout import LayoutError, plan
from ixtune.training.batch import PictureSource

PLACEHOLDER = "<ImageHere>"


def prompt_of(question: str, images: Sequence[Path], hd_num: int) -> Prompt:
    """A prompt in the training template; pictures without a placeholder stand before the question.

    Raises:
        UsageError: a picture has no layout at this hd_num.
        PictureError: a picture cannot be read.
    """
    pictures = []
    for path in images:
        width, height = read_size(path)
        try:
            layout = plan(width, height, hd_num)
        except LayoutError as error:
            raise UsageError(
                f"no layout for {width}x{height} at hd_num {hd_num}: {error}",
                where=str(path),
                mend="crop the picture to a less extreme shape, or raise --hd-num",
            ) from error
        pictures.append(
            {
                "path": str(path.resolve()),
                "hd_num": hd_num,
                "rows": layout.rows,
                "cols": layout.cols,
                "tokens": layout.tokens,
            }
        )
    text = question if PLACEHOLDER in question else PLACEHOLDER * len(images) + question
    return Prompt((Turn("user", text),), tuple(pictures))


def predict(loaded: Loaded, question: str, images: Sequence[Path], hd_num: int, max_new_tokens: int) -> str:
    """The greedy answer."""
    answerer = Answerer(loaded.model, loaded.tokenizer, PictureSource(Path()).of, max_new_tokens)
    with loaded.autocast():
        return answerer([prompt_of(question, images, hd_num)])[0]
