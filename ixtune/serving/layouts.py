"""Describe how images are cut into crops, and how many tokens they need: `/v1/layout`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ixtune.data.images.header import NOTES
from ixtune.data.rejects import RecordError
from ixtune.serving.engine.models import ServedModel
from ixtune.serving.errors import of_record
from ixtune.serving.images import ImageOpener
from ixtune.serving.schema import LayoutRequest

MAX_PAGES = 20
"""Pages of one request, each of which may be rendered."""


def describe(asked: LayoutRequest, model: ServedModel, opener: ImageOpener) -> dict[str, Any]:
    """Return the crop grid and the token counts of an image, or of each page of a document.

    The request is a JSON object:

        image    As `url` in a chat message: a data: URL or a path; documents also with #page=2-5.
                 At most 20 pages.
        model    Whose layout rule, corrections and default hd_num; by default the first of `/v1/models`.
        hd_num   Maximum number of crops; by default as the model was trained.
        preview  Longest side in pixels of a JPEG of each page as the model sees it before it is resized; without it,
                 there is none.

    The answer:

        object   "layout"
        model    Its name.
        hd_num   The one in use.
        tokens   Of all pages.
        pages    For each: `name`, `page` (its number, null for an image), `notes` (texts), the fields of
                 `ixtune layout --json` (width, height, resized_width, resized_height, pad_left, pad_top, pad_right,
                 pad_bottom, final_width, final_height, rows, cols, crops, tokens, token_parts, ...), and `preview`, a
                 data: URL or null.

    Raises:
        ApiError: The image cannot be used.
    """
    view = model.view if asked.hd_num is None else replace(model.view, hd_num=asked.hd_num)
    opened = opener.open(asked.image, view, "image", MAX_PAGES)
    pages = []
    for one in opened:
        picture = one.laid_out(view, "image")
        try:
            preview = picture.preview(asked.preview) if asked.preview else None
        except RecordError as error:
            raise of_record(error, "image") from error
        notes = [NOTES[note] for note in picture.notes]
        known = {"name": picture.name, "page": picture.page, "notes": notes, "preview": preview}
        pages.append(known | picture.layout.as_dict())
    tokens = sum(page["tokens"] for page in pages)
    return {"object": "layout", "model": model.name, "hd_num": view.hd_num, "tokens": tokens, "pages": pages}
