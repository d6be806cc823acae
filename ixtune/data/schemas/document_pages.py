"""Combine a document's path with the page number in another column of the table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ixtune.data.images.documents import split_pages
from ixtune.data.record import ImageRef
from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.fields import is_missing, shown

_ENDINGS = (".pdf", ".tif", ".tiff")
_NUMBERS = re.compile(r"\s*\d{1,7}(-\d{1,7})?\s*")


def names_document(path: Any) -> bool:
    """Return whether a value is the path of a PDF or a TIFF, without pages."""
    return isinstance(path, str) and path.strip().lower().endswith(_ENDINGS)


def with_page(images: Sequence[ImageRef], page: Any, field: str) -> tuple[ImageRef, ...]:
    """Return the images of a record with the page appended to the document, such as `report.pdf#page=3`.

    Args:
        images: Images of the record.
        page: The value of its page field; ignored if it is empty or no image is a document.
        field: The name of that field.

    Raises:
        RecordError: It is not a page number, there are several documents, or the document names its page already.
    """
    documents = [at for at, image in enumerate(images) if names_document(split_pages(image.path or "")[0])]
    if is_missing(page) or page == "" or not documents:
        return tuple(images)
    text = str(int(page)) if isinstance(page, float) and page.is_integer() else str(page)
    at, given = documents[0], str(images[documents[0]].path)
    if isinstance(page, bool) or not _NUMBERS.fullmatch(text):
        raise RecordError(
            Reason.BAD_FIELD, f"`{field}` is {shown(page)}", hint="write a page number, or a range such as 2-5"
        )
    if len(documents) > 1 or split_pages(given)[1] is not None:
        raise RecordError(
            Reason.BAD_FIELD,
            f"`{field}` is {text.strip()}, and "
            + ("there are several documents" if len(documents) > 1 else f"the path says {given}"),
            hint="write the page after each path, such as report.pdf#page=3",
        )
    name = f"{given.strip()}#page={text.strip()}"
    return (*images[:at], replace(images[at], name=name, path=name), *images[at + 1 :])
