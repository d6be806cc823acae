"""Read the image files of one source's records: find, hash, read the header, and store what the set carries itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ixtune.data.images.content_hash import hash_of_bytes, hash_of_file
from ixtune.data.images.header import Header, read_header
from ixtune.data.images.image_file import read_file
from ixtune.data.images.image_paths import Located, locate
from ixtune.data.images.image_store import keep
from ixtune.data.images.pixels import Corrections, open_image
from ixtune.data.prepared import store
from ixtune.data.record import ImageRef
from ixtune.data.rejects import Reason, RecordError
from ixtune.layout import LayoutError, PatchLayout, plan

# as much as the largest image that is decoded at all takes without compression
_MAX_EMBEDDED_BYTES = 512 << 20
# larger files are hashed block by block
_MAX_BYTES_AT_ONCE = 16 << 20


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image of a record, before it is laid out.

    Attributes:
        name: What the source calls it.
        path: Relative to the image root; "" if the source carries the image itself.
        header: Its size and what is to be said of it.
        content: Hash of the file's bytes.
        size: Of the file, in bytes.
        embedded: The file's bytes, if the set is to carry the image.
    """

    name: str
    path: str
    header: Header
    content: str
    size: int
    embedded: bytes | None

    def layout(self, hd_num: int, *, upscale: bool) -> PatchLayout:
        """Return its layout.

        Raises:
            RecordError: It has none at this hd_num.
        """
        try:
            return plan(self.header.width, self.header.height, hd_num, upscale=upscale)
        except LayoutError as error:
            raise RecordError(
                Reason.NO_LAYOUT, str(error), where=self.name, hint="crop the image, or raise --hd-num"
            ) from error


@dataclass(slots=True)
class ImageReader:
    """Reads the images of one source.

    Attributes:
        image_root: The folder that paths may not leave; None if the source can have none.
        root_index: Its number among the image roots of the set.
        corrections: Departures from the reference's way of opening an image.
        verify: Decode every image, not only its header.
        embed: Have the set carry all images.
        folder: Where images go that the set carries.
    """

    image_root: Path | None
    root_index: int
    corrections: Corrections
    verify: bool
    embed: bool
    folder: Path
    _known: dict[str, ImageFile] = field(default_factory=dict)

    def read(self, image: ImageRef) -> ImageFile:
        """Return an image of a record; a file that was read before is not read again.

        Raises:
            RecordError: It cannot be used.
        """
        if image.path is None:
            assert image.content is not None
            return self._of_bytes(image.content, image.name)
        if image.path in self._known:
            return self._known[image.path]
        found = self._of_file(self._locate(image.path), image.path)
        if not self.embed:  # or else every file would stay in memory
            self._known[image.path] = found
        return found

    def store(self, file: ImageFile, layout: PatchLayout) -> Mapping[str, Any]:
        """Return what the prepared set stores of an image, after writing it where the set is to carry it."""
        root, path, name = self.root_index, file.path, ""
        if file.embedded is not None:
            root, path, name = store.OWN_ROOT, f"{store.IMAGES}/{keep(self.folder, file.embedded)}", file.name
        return store.stored_image(root, path, layout, content=file.content, size=file.size, name=name)

    def _locate(self, given: str) -> Located:
        if self.image_root is None:
            raise RecordError(
                Reason.PATH_OUTSIDE_ROOT,
                "the source gives a path, but has no folder of its own",
                where=given,
                hint="give the folder of the images as --image-root",
            )
        return locate(self.image_root, given)

    def _of_file(self, located: Located, name: str) -> ImageFile:
        path, file = located.path, located.file
        content = read_file(file, name, _MAX_EMBEDDED_BYTES if self.embed else _MAX_BYTES_AT_ONCE)
        if content is not None:
            header = self._header(content, name, located.notes)
            embedded = content if self.embed else None
            return ImageFile(name, path, header, hash_of_bytes(content), len(content), embedded)
        if self.embed:
            raise RecordError(
                Reason.PICTURE_TOO_LARGE,
                f"a file of more than {_MAX_EMBEDDED_BYTES >> 20} MiB",
                where=name,
                hint="save it with compression",
            )
        header = self._header(file, name, located.notes)
        return ImageFile(name, path, header, hash_of_file(file), file.stat().st_size, None)

    def _of_bytes(self, content: bytes, name: str) -> ImageFile:
        return ImageFile(name, "", self._header(content, name), hash_of_bytes(content), len(content), content)

    def _header(self, source: Path | bytes, name: str, spelled: tuple[str, ...] = ()) -> Header:
        header = read_header(source, self.corrections, name=name)
        if self.verify:
            open_image(source, self.corrections, name)
        return replace(header, notes=header.notes + spelled) if spelled else header
