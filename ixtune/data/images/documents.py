"""Open pages of documents as images: PDF with pypdfium2 (extra `pdf`), multi-page TIFF with Pillow.

Pages are named as in a link: `report.pdf#page=3` (RFC 8118), `report.pdf#page=2-5`, or `report.pdf` for all pages.
A PDF page has no pixels of its own. It is rendered at exactly the size that its layout would be resized to, so
that no detail is blurred or lost.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ixtune.data.images.file_kinds import START_BYTES, is_pdf
from ixtune.data.images.image_file import MAX_PIXELS, ImageError, broken, opened
from ixtune.data.images.pixels import NONE, Corrections, converted, is_deep
from ixtune.data.rejects import Reason
from ixtune.family import FOUR_KHD, Member
from ixtune.layout import LayoutError, plan

if TYPE_CHECKING:
    from PIL import Image

MAX_PAGES = 500
"""Maximum number of pages per record: at hd_num 1 they take 156,000 tokens, far more than the model's context."""

PDF, TIFF = "PDF", "TIFF"

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PAGES = re.compile(r"(?P<file>.+)#page=(?P<first>\d{1,7})(?:-(?P<last>\d{1,7}))?", re.IGNORECASE | re.DOTALL)
_POINTS_PER_INCH = 72
_SCALED_SIDE = 100_000
_MOST_ROUNDS = 64  # two or three are enough for every shape tried
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
# PDFium is not thread-safe, even for different documents
_PDFIUM = threading.Lock()
_WRONG_PASSWORD, _UNSUPPORTED_SECURITY = 4, 5  # fpdfview.h, FPDF_ERR_PASSWORD and FPDF_ERR_SECURITY


@dataclass(frozen=True, slots=True)
class Pages:
    """Pages of a document, counted from 1, both ends included."""

    first: int
    last: int

    def __str__(self) -> str:
        """Return the pages as written in a path, such as `#page=2-5`."""
        return f"#page={self.first}" if self.first == self.last else f"#page={self.first}-{self.last}"


def split_pages(given: str) -> tuple[str, Pages | None]:
    """Split `report.pdf#page=2-5` into the path and the pages; no pages where the path names none."""
    match = _PAGES.fullmatch(given) if "#" in given else None
    if match is None:
        return given, None
    first = int(match["first"])
    return match["file"], Pages(first, int(match["last"] or first))


def page_name(name: str, number: int) -> str:
    """Return the name of one page of a document."""
    return f"{split_pages(name)[0]}#page={number}"


def document_kind(source: Path | bytes) -> str | None:
    """Return `PDF` or `TIFF` by the first bytes of a file; None if it is neither, or cannot be read."""
    if isinstance(source, bytes):
        start = source[:START_BYTES]
    else:
        try:
            with open(source, "rb") as file:
                start = file.read(START_BYTES)
        except OSError:
            return None
    if start.startswith(_TIFF_STARTS):
        return TIFF
    return PDF if is_pdf(start) else None


def page_numbers(source: Path | bytes, pages: Pages | None, name: str) -> range:
    """Return the numbers of the selected pages, counted from 1.

    Args:
        source: A PDF or a TIFF, or its content.
        pages: Which of its pages; None for all.
        name: Name in error messages.

    Raises:
        ImageError: The document cannot be opened, has no such page, or more than `MAX_PAGES` are selected.
    """
    count = page_count(source, name)
    if pages is None:
        pages = Pages(1, count)
    if not 1 <= pages.first <= pages.last <= count:
        raise ImageError(
            Reason.PAGE_OUT_OF_RANGE,
            f"there is no {pages}: the document has {count:,} page{'s' * (count != 1)}, counted from 1",
            where=name,
            hint=f"write #page=1 to #page={count}",
        )
    if pages.last - pages.first >= MAX_PAGES:
        raise ImageError(
            Reason.TOO_MANY_PAGES,
            f"{pages.last - pages.first + 1:,} pages in one record, more than {MAX_PAGES}",
            where=name,
            hint="ask about the pages that matter: #page=2-5, or a record for each page",
        )
    return range(pages.first, pages.last + 1)


def page_shape(source: Path | bytes, number: int, name: str) -> tuple[float, float]:
    """Return the width and height of a page of a PDF in points, 72 per inch.

    Raises:
        ImageError: The page is broken.
    """
    with _pdf(source, name) as document, _page(document, number, name) as page:
        wide, high = page.get_size()
    if not (wide > 0 and high > 0):
        raise ImageError(
            Reason.PICTURE_BROKEN, f"a page of {wide:g} x {high:g} points", where=name, hint="save the PDF again"
        )
    return wide, high


def page_size(
    shape: tuple[float, float], name: str, hd_num: int, dpi: float | None = None, member: Member = FOUR_KHD
) -> tuple[int, int]:
    """Return the width and height in pixels at which a page of a PDF is rendered.

    Args:
        shape: Size of the page in points.
        name: Name in error messages.
        hd_num: Maximum number of crops; without `dpi` the page fills them.
        dpi: Resolution that overrides `hd_num`.
        member: The model, whose crops they are.

    Raises:
        ImageError: The page has more than `MAX_PIXELS` at this resolution, or no layout.
    """
    size = _filling(*shape, hd_num, member, name) if dpi is None else _at(*shape, dpi)
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError(
            Reason.PICTURE_TOO_LARGE,
            f"a page of {size[0]:,} x {size[1]:,} pixels, more than {MAX_PIXELS:,}",
            where=name,
            hint="remove --dpi, or lower it",
        )
    return size


def fitted(width: int, height: int, hd_num: int, *, upscale: bool = True, member: Member = FOUR_KHD) -> tuple[int, int]:
    """Return the size near a given one that its own layout does not change.

    Raises:
        LayoutError: There is none for this shape.
    """
    size = (width, height)
    for _ in range(_MOST_ROUNDS):
        layout = plan(*size, hd_num, upscale=upscale, member=member)
        resized = (layout.resized_width, layout.resized_height)
        if resized == size:
            return size
        # ends: the long side can only gain crops, at most hd_num, and between two gains the short side only shrinks
        size = resized
    return size


def render(source: Path | bytes, number: int, size: tuple[int, int], name: str) -> Image.Image:
    """Return a page of a PDF as an RGB image of exactly this size, on white, with filled-in form fields.

    Raises:
        ImageError: The page is broken.
    """
    from PIL import Image

    with _pdf(source, name, forms=True) as document, _page(document, number, name) as page:
        from pypdfium2 import PdfBitmap, raw

        width, height = size
        bitmap = PdfBitmap.new_native(width, height, raw.FPDFBitmap_BGR)
        try:
            bitmap.fill_rect((255, 255, 255, 255), 0, 0, width, height)
            place = (bitmap, page, 0, 0, width, height, 0, raw.FPDF_ANNOT)
            raw.FPDF_RenderPageBitmap(*place)
            if document.formenv:
                raw.FPDF_FFLDraw(document.formenv, *place)
            # BGR, rows padded to four bytes
            return Image.frombuffer("RGB", size, bytes(bitmap.buffer), "raw", "BGR", bitmap.stride, 1)
        finally:
            bitmap.close()


def open_page(
    file: Path, number: int, size: tuple[int, int], name: str, corrections: Corrections = NONE
) -> Image.Image:
    """Return a page of a PDF or a TIFF as RGB; a PDF's is rendered at `size`.

    Raises:
        ImageError: There is no such page, or it is broken.
    """
    if document_kind(file) == PDF:
        return render(file, number, size, name)
    try:
        return converted(frame(file, number, name), corrections)
    except ValueError as error:  # a mode that Pillow cannot convert
        raise broken(f"the colors of page {number} cannot be converted: {error}", name) from error


def png_of(image: Image.Image) -> bytes:
    """Return an image as a PNG file; equal pixels give equal bytes (with one version of Pillow and zlib)."""
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def frame(source: Path | bytes, number: int, name: str) -> Image.Image:
    """Return a page of a TIFF, decoded: in its own mode if PNG has it, else as RGB.

    Raises:
        ImageError: The page is broken, or has 32-bit gray levels, whose white is unknown.
    """
    with opened(source, name) as (image, _):
        try:
            image.seek(number - 1)
            image.load()
        except MemoryError:
            raise
        except Exception as error:  # what a decoder raises on broken data differs by version
            raise broken(f"page {number} is corrupt or truncated: {error}", name) from error
        if is_deep(image) and image.mode not in _PNG_MODES:
            raise ImageError(
                Reason.PICTURE_16_BIT,
                f"page {number} has 32-bit gray levels (mode {image.mode})",
                where=name,
                hint="save the page with 8 bits",
            )
        return image.copy() if image.mode in _PNG_MODES else image.convert("RGB")


def page_count(source: Path | bytes, name: str) -> int:
    """Return the number of pages of a PDF or a TIFF.

    Raises:
        ImageError: It is neither, it is broken, encrypted or without pages, or pypdfium2 is not installed.
    """
    if document_kind(source) == PDF:
        with _pdf(source, name) as document:
            count = len(document)
        if not count:
            raise ImageError(Reason.PICTURE_EMPTY, "a PDF without pages", where=name, hint="export the PDF again")
        return count
    with opened(source, name) as (image, _):
        if image.format != "TIFF":
            raise ImageError(
                Reason.PAGE_OUT_OF_RANGE,
                f"a page of a {image.format} image, which has none",
                where=name,
                hint="remove #page= or the page column; only PDF and TIFF files have pages",
            )
        try:
            return int(getattr(image, "n_frames", 1))
        except Exception as error:  # what the reader raises on a broken directory differs by version
            raise broken(f"the TIFF is corrupt or truncated: {error}", name) from error


def _filling(wide: float, high: float, hd_num: int, member: Member, name: str) -> tuple[int, int]:
    """Return the size of a page of this shape that fills its layout."""
    # any size of this shape will do to begin with; a large one keeps the shape through the rounding
    scale = _SCALED_SIDE / max(wide, high)
    try:
        return fitted(max(1, round(wide * scale)), max(1, round(high * scale)), hd_num, member=member)
    except LayoutError as error:
        raise ImageError(Reason.NO_LAYOUT, str(error), where=name, hint="crop the page, or raise --hd-num") from error


def _at(wide: float, high: float, dpi: float) -> tuple[int, int]:
    return max(1, round(wide / _POINTS_PER_INCH * dpi)), max(1, round(high / _POINTS_PER_INCH * dpi))


@contextmanager
def _pdf(source: Path | bytes, name: str, forms: bool = False) -> Iterator[Any]:
    """Yield an open PDF; it is opened and closed under PDFium's lock."""
    try:
        import pypdfium2
    except ImportError as error:
        raise ImageError(
            Reason.NEEDS_EXTRA,
            "a PDF, and the package that renders its pages is not installed",
            where=name,
            hint='pip install "ixtune[pdf]", or save the pages as PNG',
        ) from error
    with _PDFIUM:
        try:
            document = pypdfium2.PdfDocument(source)
        except (pypdfium2.PdfiumError, OSError) as error:
            raise _refused(error, name) from error
        try:
            if forms:
                document.init_forms()
            yield document
        finally:
            document.close()


def _refused(error: Exception, name: str) -> ImageError:
    if getattr(error, "err_code", None) in (_WRONG_PASSWORD, _UNSUPPORTED_SECURITY):
        return ImageError(
            Reason.DOCUMENT_ENCRYPTED,
            "the PDF is encrypted with a password",
            where=name,
            hint="save it without a password, e.g. `qpdf --decrypt --password=... in.pdf out.pdf`",
        )
    return broken(f"the PDF is broken: {str(error).splitlines()[0] if str(error) else type(error).__name__}", name)


@contextmanager
def _page(document: Any, number: int, name: str) -> Iterator[Any]:
    import pypdfium2

    try:
        page = document[number - 1]
    except pypdfium2.PdfiumError as error:
        raise broken(f"page {number} of the PDF is broken: {error}", name) from error
    try:
        yield page
    finally:
        page.close()
