"""Find and open the images of a prepared set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ixtune.data.images.documents import open_page, split_pages
from ixtune.data.images.image_file import ImageError
from ixtune.data.images.pixels import Corrections, open_image
from ixtune.data.rejects import Reason

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """Locations of the images of a set, and the corrections applied on opening.

    Attributes:
        roots: The folders that stored paths are relative to; a stored `root` is an index into these.
        corrections: Deviations from how the reference opens an image.
    """

    roots: tuple[Path, ...]
    corrections: Corrections = Corrections()

    def path(self, stored: Mapping[str, Any]) -> Path:
        """Return the file of one stored image, which is below its image root.

        Raises:
            ImageError: The stored path is outside the root; `ixtune prepare` writes no such path.
        """
        root, path = int(stored["root"]), str(stored["path"])
        if not 0 <= root < len(self.roots):
            raise _foreign(f"there is no image root {root}", path)
        if path.startswith("/") or ".." in path:
            file = Path(os.path.normpath(self.roots[root] / path))
            if not file.is_relative_to(os.path.normpath(self.roots[root])):
                raise _foreign(f"the stored path is outside the image root {self.roots[root]}", path)
        return self.roots[root].joinpath(path)

    def open(self, stored: Mapping[str, Any]) -> Image.Image:
        """Return one stored image as RGB. The path may name a page of a document; a PDF's gets its layout's size.

        Raises:
            ImageError: The image cannot be opened.
        """
        path = self.path(stored)
        file, pages = split_pages(str(path))
        if pages is not None and not path.exists():
            return open_page(Path(file), pages.first, (stored["width"], stored["height"]), str(path), self.corrections)
        return open_image(path, self.corrections)


def _foreign(found: str, path: str) -> ImageError:
    return ImageError(
        Reason.PATH_OUTSIDE_ROOT,
        found,
        where=path,
        hint="prepare the data again; do not use a set that someone may have changed",
    )
