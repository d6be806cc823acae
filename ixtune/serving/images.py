"""Open the images of a request: data: URLs, paths below one folder, and, where allowed, http URLs.

Content is kept in memory only. Nothing is decoded before its size in pixels and tokens is known.
"""

from __future__ import annotations

import base64
import hashlib
import re
import threading
from collections.abc import Hashable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ixtune.data.image_reader import ImageFile, PdfPage
from ixtune.data.images.documents import (
    PDF,
    Pages,
    document_kind,
    frame,
    page_name,
    page_numbers,
    page_shape,
    png_of,
    render,
    split_pages,
)
from ixtune.data.images.header import read_header
from ixtune.data.images.image_file import read_file
from ixtune.data.images.pixels import Corrections, open_image, place_and_cut
from ixtune.data.rejects import RecordError
from ixtune.data.schemas.image_references import decoded_base64
from ixtune.evaluation.questions import ImageView
from ixtune.layout import PatchLayout
from ixtune.serving.errors import ApiError, bad_request, of_record

if TYPE_CHECKING:
    from PIL import Image

_DATA = re.compile(r"data:(?P<type>[^;,]{0,100})(?P<parameters>(?:;[^;,]{0,100}){0,8}),", re.IGNORECASE)
_TYPES = ("image/", "application/pdf", "application/octet-stream")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_PATH_CHARACTERS = 4096
_DECODING = threading.BoundedSemaphore(2)  # each holds a decoded image, of up to 0.5 GiB
_PAGE_SUFFIX = 24  # characters of the longest `#page=`


@dataclass(eq=False)
class Picture:
    """An image of a request with its layout; decoded when its crops are needed.

    Attributes:
        name: Name in messages.
        content: The file.
        page: Number of the page of a document, counted from 1; None for an image.
        layout: Its layout.
        corrections: Deviations from how the reference opens it.
        key: Key of content, page, layout and corrections.
        notes: Codes of `ixtune.data.images.header.NOTES`.
    """

    name: str
    content: bytes
    page: int | None
    layout: PatchLayout
    corrections: Corrections
    key: Hashable
    notes: tuple[str, ...] = ()
    _crops: torch.Tensor | None = field(default=None, repr=False)

    def image(self) -> Image.Image:
        """Decode the image, or render the page at the size of its layout.

        Raises:
            RecordError: Its data are corrupt.
        """
        if self.page is not None:
            return render(self.content, self.page, (self.layout.width, self.layout.height), self.name)
        return open_image(self.content, self.corrections, self.name)

    def crops(self) -> tuple[torch.Tensor, tuple[int, int]]:
        """Return uint8 crops [N, 3, side, side] and (rows, cols).

        Raises:
            RecordError: Its data are corrupt.
        """
        crops = self._crops
        if crops is None:
            with _DECODING:
                self._crops = crops = torch.from_numpy(place_and_cut(self.image(), self.layout))
        return crops, (self.layout.rows, self.layout.cols)

    def release(self) -> None:
        """Drop the crops; they are computed again when needed."""
        self._crops = None

    @property
    def nbytes(self) -> int:
        """Bytes of the file and of the crops in memory."""
        return len(self.content) + (0 if self._crops is None else self._crops.nbytes)

    def preview(self, side: int) -> str:
        """Return the image as a JPEG of at most `side` pixels, as a data: URL."""
        with _DECODING:
            image = self.image()
            image.thumbnail((side, side))
        file = BytesIO()
        image.save(file, "JPEG", quality=85)
        return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


class ImageOpener:
    """Opens the images that requests name."""

    def __init__(self, image_root: Path | None, allow_http: bool, max_bytes: int) -> None:
        """Prepare.

        Args:
            image_root: Folder that paths are relative to and must stay in; None to refuse paths.
            allow_http: Load images from public http and https URLs.
            max_bytes: Maximum size of a file.
        """
        self.image_root = image_root.resolve() if image_root else None
        self.allow_http, self.max_bytes = allow_http, max_bytes

    def open(self, url: str, view: ImageView, param: str, max_pages: int) -> list[Opened]:
        """Return the image at a URL or path, or the pages of a document.

        Args:
            url: `data:`, a path, or an http URL; for documents optionally followed by `#page=2` or `#page=2-5`.
            view: Settings for opening it.
            param: Its place in the request, for error messages.
            max_pages: Maximum number of pages.

        Raises:
            ApiError: It cannot be used.
        """
        url, pages = _split_pages(url)
        content = self._content(url, param)
        try:
            return _opened(content, pages, param, view.corrections, max_pages)
        except RecordError as error:
            raise of_record(error, param) from error

    def _content(self, url: str, param: str) -> bytes:
        if url[:5].lower() == "data:":
            return _of_data(url, param)
        scheme = _SCHEME.match(url[:40])
        if scheme is None:
            return self._of_path(url, param)
        if scheme[1].lower() in ("http", "https"):
            if not self.allow_http:
                raise bad_request(
                    "this server loads no images from a network; send the image as a data: URL, or start it with "
                    "--allow-http",
                    param,
                    "picture_remote",
                )
            from ixtune.serving.fetch import fetch

            return fetch(url, self.max_bytes, param)
        raise bad_request(
            f"image URLs with {scheme[1][:20]}: are not accepted; send the image as data:image/png;base64,...",
            param,
            "bad_image_field",
        )

    def _of_path(self, given: str, param: str) -> bytes:
        """Read a file below the image root; error messages reveal nothing about other files."""
        if self.image_root is None:
            raise bad_request(
                "this server has no image folder; send the image as a data: URL, or start it with --image-root",
                param,
                "path_outside_root",
            )
        if not given or len(given) > _PATH_CHARACTERS or "\0" in given:
            raise bad_request("this is not a valid path", param, "bad_image_field")
        try:
            path = (self.image_root / given).resolve()
        except (OSError, RuntimeError, ValueError) as error:  # circular links
            raise bad_request("there is no such file", param, "picture_missing") from error
        if not path.is_relative_to(self.image_root):
            raise bad_request("the path is outside the server's image folder", param, "path_outside_root")
        try:
            content = read_file(path, "the image", self.max_bytes)
        except RecordError as error:
            raise of_record(error, param) from error
        if content is None:
            raise _too_large(self.max_bytes, param)
        return content


@dataclass(frozen=True, slots=True)
class Opened:
    """An image or page before its layout is known."""

    file: ImageFile | PdfPage
    content: bytes

    def laid_out(self, view: ImageView, param: str) -> Picture:
        """Return it with its layout.

        Raises:
            ApiError: It has none at this hd_num.
        """
        try:
            layout = self.file.layout(view.hd_num, upscale=view.upscale, member=view.member)
        except RecordError as error:
            raise of_record(error, param) from error
        page = self.file.number if isinstance(self.file, PdfPage) else None
        key = (self.file.key, view.corrections.names(), layout)
        return Picture(self.file.name, self.content, page, layout, view.corrections, key, self.file.notes)


def _opened(content: bytes, pages: Pages | None, name: str, corrections: Corrections, max_pages: int) -> list[Opened]:
    kind = document_kind(content)
    numbers = page_numbers(content, pages, name) if kind == PDF or pages is not None else range(1)
    if len(numbers) > max_pages:
        raise bad_request(
            f"{len(numbers)} pages, more than fit; select some with #page=1-{max(1, max_pages)}", name, "too_many_pages"
        )
    digest = hashlib.sha256(content).hexdigest()  # of clients that need not trust each other
    if kind == PDF:
        return [
            Opened(
                PdfPage(
                    name=page_name(name, number),
                    path="",
                    source=content,
                    number=number,
                    shape=page_shape(content, number, name),
                    dpi=None,
                    content=digest,
                    notes=(),
                ),
                content,
            )
            for number in numbers
        ]
    if pages is not None:
        return [
            _image(
                png_of(frame(content, number, name)), f"{digest}#page={number}", page_name(name, number), corrections
            )
            for number in numbers
        ]
    return [_image(content, digest, name, corrections)]


def _image(content: bytes, key: str, name: str, corrections: Corrections) -> Opened:
    header = read_header(content, corrections, name=name)
    return Opened(ImageFile(name, "", header, key, len(content), None), content)


def _split_pages(url: str) -> tuple[str, Pages | None]:
    """Split `#page=` from the end of a URL; only its end is searched, since the rest can be megabytes."""
    tail = url[-_PAGE_SUFFIX:]
    if "#" not in tail:
        return url, None
    marked, pages = split_pages("x" + tail[tail.rindex("#") :])
    return (url[: len(url) - (len(tail) - tail.rindex("#"))], pages) if marked == "x" else (url, None)


def _of_data(url: str, param: str) -> bytes:
    head = _DATA.match(url[:1024])
    kind = head["type"].lower() if head else ""
    if head is None or not kind.startswith(_TYPES):
        raise bad_request(
            "the data: URL is neither an image nor a PDF; write data:image/png;base64,...",
            param,
            "bad_image_field",
        )
    if "base64" not in head["parameters"].lower().split(";"):
        raise bad_request("the data: URL is not base64; write data:image/png;base64,...", param, "bad_image_field")
    try:
        return decoded_base64(url[head.end() :], "the image")
    except RecordError as error:
        raise of_record(error, param) from error


def _too_large(max_bytes: int, param: str) -> ApiError:
    return ApiError(
        413, f"the image is larger than {max_bytes >> 20} MiB; scale it down", param=param, code="picture_too_large"
    )
