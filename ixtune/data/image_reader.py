"""Read the image files of one source's records: find, hash, read the header, and copy images into the set if needed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ixtune.data.images.content_hash import hash_of_bytes, hash_of_file
from ixtune.data.images.documents import (
    PDF,
    Pages,
    document_kind,
    frame,
    page_count,
    page_name,
    page_numbers,
    page_shape,
    page_size,
    png_of,
    render,
    split_pages,
)
from ixtune.data.images.header import DOCUMENT_PAGE, Header, read_header
from ixtune.data.images.image_file import read_file
from ixtune.data.images.image_paths import Folders, Located, is_file_below, locate
from ixtune.data.images.image_store import keep
from ixtune.data.images.near_images import near_hash
from ixtune.data.images.pixels import Corrections, open_image
from ixtune.data.prepared import store
from ixtune.data.record import ImageRef, Turn
from ixtune.data.rejects import Reason, RecordError
from ixtune.data.remote_files import RemoteFolder
from ixtune.data.text.conversation_rules import PLACEHOLDER
from ixtune.family import Member
from ixtune.layout import LayoutError, PatchLayout, plan

# uncompressed size of the largest image that is decoded
_MAX_EMBEDDED_BYTES = 512 << 20
# larger files are hashed block by block
_MAX_BYTES_AT_ONCE = 16 << 20
_PLACEHOLDERS = re.compile(re.escape(PLACEHOLDER))


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image of a record, before its layout is known.

    Attributes:
        name: Name in the source.
        path: Path relative to the image root; "" if the source contains the image itself.
        header: Its size and notes.
        content: Hash of the file's bytes.
        size: Size of the file in bytes.
        embedded: The file's bytes, if the image is to be copied into the set.
    """

    name: str
    path: str
    header: Header
    content: str
    size: int
    embedded: bytes | None

    def layout(self, hd_num: int, *, upscale: bool, member: Member) -> PatchLayout:
        """Return its layout.

        Raises:
            RecordError: It has none at this hd_num.
        """
        return _planned(self.header.width, self.header.height, hd_num, upscale, member, self.name)

    @property
    def key(self) -> str:
        """Key that identifies the image in any size."""
        return self.content

    @property
    def notes(self) -> tuple[str, ...]:
        """Codes of `NOTES` that apply to the image."""
        return self.header.notes


@dataclass(frozen=True, slots=True)
class PdfPage:
    """A page of a PDF, before its layout is known: its size in pixels depends on its hd_num.

    Attributes:
        name: Name of the page, such as `report.pdf#page=3`.
        path: Path relative to the image root, with the page; "" if the source contains the PDF itself.
        source: The PDF, or its content.
        number: Number of the page, counted from 1.
        shape: Width and height in points.
        dpi: Resolution; None for the one that fills the layout.
        content: Hash of the PDF's bytes.
        notes: Codes of `NOTES`.
    """

    name: str
    path: str
    source: Path | bytes
    number: int
    shape: tuple[float, float]
    dpi: int | None
    content: str
    notes: tuple[str, ...]

    @property
    def key(self) -> str:
        """Key that identifies the page in any size."""
        return f"{self.content}#page={self.number}"

    def layout(self, hd_num: int, *, upscale: bool, member: Member) -> PatchLayout:
        """Return the layout of the page at the size it is rendered at for this hd_num.

        Raises:
            RecordError: It has none, or too many pixels.
        """
        size = page_size(self.shape, self.name, hd_num, self.dpi, member)
        return _planned(*size, hd_num, upscale, member, self.name)


def _planned(width: int, height: int, hd_num: int, upscale: bool, member: Member, name: str) -> PatchLayout:
    try:
        return plan(width, height, hd_num, upscale=upscale, member=member)
    except LayoutError as error:
        raise RecordError(Reason.NO_LAYOUT, str(error), where=name, hint="crop the image, or raise --hd-num") from error


def with_pages(turns: Sequence[Turn], counts: Sequence[int]) -> tuple[Turn, ...]:
    """Return turns with the placeholder of each image repeated for its pages.

    Args:
        turns: A conversation.
        counts: For each image of the record, the number of images that it became.
    """
    if all(count == 1 for count in counts):
        return tuple(turns)
    left = iter(counts)
    return tuple(
        replace(turn, text=_PLACEHOLDERS.sub(lambda _: PLACEHOLDER * next(left, 1), turn.text)) for turn in turns
    )


@dataclass(slots=True)
class ImageReader:
    """Reads the images of one source.

    Attributes:
        image_root: The folder that paths must not leave; None if the source can have none.
        root_index: Index of the image root in the set.
        folder: Folder for images that are copied into the set.
        corrections: Deviations from how the reference opens an image.
        verify: Decode every image, not only its header.
        embed: Copy all images into the set.
        all_pages: Use every page of a multi-page TIFF.
        dpi: Resolution of PDF pages; None for the one that fills their layouts.
        render: Store pages of documents in the set. Otherwise the stored path names the page, and `ImageFiles.open`
            opens it.
        remote: The image root in an object store, instead of `image_root`; its images are copied into the set.
    """

    image_root: Path | None
    root_index: int
    folder: Path
    corrections: Corrections = Corrections()
    verify: bool = False
    embed: bool = False
    all_pages: bool = False
    dpi: int | None = None
    render: bool = True
    remote: RemoteFolder | None = None
    _folders: Folders = field(default_factory=dict)
    _known: dict[str, list[ImageFile | PdfPage]] = field(default_factory=dict)
    _near: dict[str, int] = field(default_factory=dict)
    _rendered: dict[tuple[str, int, int], tuple[str, str, int]] = field(default_factory=dict)

    def read(self, image: ImageRef) -> list[ImageFile | PdfPage]:
        """Return an image of a record, or the pages of a document; a file that was read before is not read again.

        Raises:
            RecordError: It cannot be used.
        """
        if image.path is None:
            assert image.content is not None
            return self._of_bytes(image.content, image.name)
        if self.remote is not None:
            path, pages = split_pages(image.path)
            return self._of_bytes(self.remote.read(path, _MAX_EMBEDDED_BYTES), image.name, pages)
        if image.path in self._known:
            return self._known[image.path]
        try:
            located, pages = self._locate(image.path)
        except RecordError as error:  # called by its name, which is not the path of an argument
            where = image.name if error.where == image.path else error.where
            raise RecordError(error.reason, error.what, where=where, hint=error.hint) from error
        found = self._of_file(located, pages, image.name)
        if not any(isinstance(one, ImageFile) and one.embedded is not None for one in found):
            self._known[image.path] = found  # without the file contents: a chunk of records may refer to gigabytes
        return found

    def read_ahead(self, images: Iterable[ImageRef]) -> None:
        """Read images of an object store at the same time, before `read` asks for each."""
        if self.remote is not None:
            paths = (split_pages(image.path)[0] for image in images if image.path is not None)
            self.remote.read_ahead(paths, _MAX_EMBEDDED_BYTES)

    def store(self, image: ImageFile | PdfPage, layout: PatchLayout) -> Mapping[str, Any]:
        """Return what the prepared set stores of an image, after writing it if the set has to contain it."""
        if isinstance(image, PdfPage):
            return self._store_page(image, layout)
        root, path, name = self.root_index, image.path, ""
        if image.embedded is not None:
            root, path, name = store.OWN_ROOT, self._kept(image.embedded), image.name
        return store.stored_image(root, path, layout, content=image.content, size=image.size, name=name)

    def near(self, stored: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        """Return the perceptual hash of each stored image; an image is decoded once.

        Raises:
            RecordError: An image cannot be decoded.
        """
        found = []
        for image in stored:
            if image["content"] not in self._near:
                own = image["root"] == store.OWN_ROOT
                folder = self.folder.parent if own else self.image_root
                assert folder is not None
                self._near[image["content"]] = near_hash(open_image(folder / image["path"], self.corrections))
            found.append(self._near[image["content"]])
        return tuple(found)

    def _store_page(self, page: PdfPage, layout: PatchLayout) -> Mapping[str, Any]:
        size = (layout.width, layout.height)
        if not self.render and page.path:
            key = f"{page.key}@{layout.width}x{layout.height}"
            return store.stored_image(self.root_index, page.path, layout, content=key, name=page.name)
        known = (page.path, *size)
        if not page.path or known not in self._rendered:
            png = png_of(render(page.source, page.number, size, page.name))
            self._rendered[known] = (self._kept(png), hash_of_bytes(png), len(png))
        path, content, in_bytes = self._rendered[known]
        return store.stored_image(
            store.OWN_ROOT, path, layout, content=content, size=in_bytes, name=page.name, document=page.key
        )

    def _kept(self, content: bytes) -> str:
        return f"{store.IMAGES}/{keep(self.folder, content)}"

    def _locate(self, given: str) -> tuple[Located, Pages | None]:
        """Return the file that a path refers to, and the selected pages."""
        if self.image_root is None:
            raise RecordError(
                Reason.PATH_OUTSIDE_ROOT,
                "the source gives a path, but has no folder",
                where=given,
                hint="pass the folder of the images with --image-root",
            )
        path, pages = split_pages(given)
        if pages is not None and not is_file_below(self.image_root, given):
            return locate(self.image_root, path, self._folders), pages
        return locate(self.image_root, given, self._folders), None

    def _of_file(self, located: Located, pages: Pages | None, name: str) -> list[ImageFile | PdfPage]:
        path, file, notes = located.path, located.file, located.notes
        content = read_file(file, name, _MAX_EMBEDDED_BYTES if self.embed else _MAX_BYTES_AT_ONCE)
        source = file if content is None else content
        if (kind := document_kind(source)) is not None:
            if kind == PDF or pages is not None or (self.all_pages and page_count(source, name) > 1):
                return self._of_document(kind, path, file if content is None else content, pages, name, notes)
        elif pages is not None:
            page_numbers(source, pages, name)  # says that it has no pages
        if content is not None:
            header = self._header(content, name, notes)
            embedded = content if self.embed else None
            return [ImageFile(name, path, header, hash_of_bytes(content), len(content), embedded)]
        if self.embed:
            raise RecordError(
                Reason.PICTURE_TOO_LARGE,
                f"a file of more than {_MAX_EMBEDDED_BYTES >> 20} MiB",
                where=name,
                hint="save it with compression",
            )
        header = self._header(file, name, notes)
        return [ImageFile(name, path, header, hash_of_file(file), file.stat().st_size, None)]

    def _of_bytes(self, content: bytes, name: str, pages: Pages | None = None) -> list[ImageFile | PdfPage]:
        kind = document_kind(content)
        all_pages = self.all_pages and kind is not None and page_count(content, name) > 1
        if kind is not None and (kind == PDF or pages is not None or all_pages):
            return self._of_document(kind, "", content, pages, name, ())
        if pages is not None:
            page_numbers(content, pages, name)  # says that it has no pages
        return [self._image_of_bytes(content, name, ())]

    def _image_of_bytes(self, content: bytes, name: str, notes: tuple[str, ...]) -> ImageFile:
        header = self._header(content, name, notes)
        return ImageFile(name, "", header, hash_of_bytes(content), len(content), content)

    def _of_document(
        self, kind: str, path: str, source: Path | bytes, pages: Pages | None, name: str, notes: tuple[str, ...]
    ) -> list[ImageFile | PdfPage]:
        numbers = page_numbers(source, pages, name)
        notes = (*notes, DOCUMENT_PAGE)
        if kind != PDF:
            return [self._tiff_page(path, source, number, name, notes) for number in numbers]
        content = hash_of_bytes(source) if isinstance(source, bytes) else hash_of_file(source)
        return [
            PdfPage(
                name=page_name(name, number),
                path=page_name(path, number) if path else "",
                source=source,
                number=number,
                shape=page_shape(source, number, name),
                dpi=self.dpi,
                content=content,
                notes=notes,
            )
            for number in numbers
        ]

    def _tiff_page(self, path: str, source: Path | bytes, number: int, name: str, notes: tuple[str, ...]) -> ImageFile:
        page = self._image_of_bytes(png_of(frame(source, number, name)), page_name(name, number), notes)
        if self.render or not path:
            return page
        return replace(page, path=page_name(path, number), embedded=None)

    def _header(self, source: Path | bytes, name: str, notes: tuple[str, ...]) -> Header:
        header = read_header(source, self.corrections, name=name)
        if self.verify:
            open_image(source, self.corrections, name)
        return replace(header, notes=header.notes + notes) if notes else header
