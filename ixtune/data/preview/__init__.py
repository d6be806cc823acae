"""Render a prepared set (`ixtune preview`): images with their crop grids, and one page to sort and search it.

Each image is placed with the code that training uses, from the stored layout: the drawing shows what the model
receives.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ixtune.data.images.image_file import ImageError
from ixtune.data.images.pixels import place
from ixtune.data.prepared import store
from ixtune.data.prepared.image_files import ImageFiles
from ixtune.data.prepared.manifest import MANIFEST
from ixtune.data.prepared.store import PreparedSet, layout_of, name_of_image
from ixtune.data.preview.choice import Choice, choose
from ixtune.data.preview.drawing import draw_grid, draw_sheet, drawn_view, steps_of, token_counts_of_record
from ixtune.data.preview.page import page
from ixtune.data.preview.tables import Drawing, Listed
from ixtune.data.rejects import Reason
from ixtune.errors import IxtuneError, UsageError
from ixtune.files import atomic_folder, atomic_write_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

PAGE = "index.html"
PICTURES = "pictures"

_SPLITS = "dataset_dict.json"
_REJECTS_SHOWN = 200
_EMBEDDED_GRID = (640, 760)  # pixels; a hundred of them, and as many global views, stay below 15 MB as text
_EMBEDDED_BYTES = 64 << 10
_QUALITIES = (75, 55, 40, 25)


@dataclass(slots=True)
class PreviewReport:
    """Summary of the written preview.

    Attributes:
        out: The output folder.
        records: Number of records in the page's table.
        images: Number of images drawn.
        problems: One line for each image that could not be drawn, with the reason.
    """

    out: Path
    records: int = 0
    images: int = 0
    problems: list[str] = field(default_factory=list)


def preview(
    folder: Path, out: Path | None = None, *, limit: int = 100, progress: Callable[[int, int], None] | None = None
) -> PreviewReport:
    """Write the new folder `out` with index.html, which needs no other file, and a PNG for each image drawn.

    Args:
        folder: A prepared set, or the folder around a training and a validation set.
        out: By default a sibling of `folder` with `-preview` behind its name.
        limit: Approximate number of images to draw per set, extremes not counted.
        progress: Callback that receives the number of images drawn and their total.

    Raises:
        UsageError: `out` exists.
        IxtuneError: There is no such set, or not one image can be drawn.
    """
    out = out if out is not None else folder.resolve().with_name(f"{folder.resolve().name}-preview")
    if os.path.lexists(out):  # before the set is opened and drawn
        raise UsageError("the output exists already", where=str(out), hint="choose another --out")
    sets = _open(folder)
    choices = {name: choose(prepared.dataset, limit) for name, prepared in sets.items()}
    total = sum(choice.images for choice in choices.values())
    report = PreviewReport(out)
    listed = []
    with atomic_folder(out) as partial:
        (partial / PICTURES).mkdir()
        for name, prepared in sets.items():
            for one in _listed(name, prepared, choices[name], partial, report):
                listed.append(one)
                if progress is not None:
                    progress(report.images + len(report.problems), total)
        if report.problems and not report.images:
            raise IxtuneError(
                "none of the images can be drawn",
                where=str(folder),
                hint="put the images back where they were, or prepare the set again",
                notes=report.problems[:5],
            )
        manifests = {name: prepared.manifest for name, prepared in sets.items()}
        rejects = list(islice(_rejects(folder, next(iter(manifests.values()))), _REJECTS_SHOWN))
        html = page(folder.resolve().name, manifests, listed, rejects)
        # a text of rejects.jsonl may contain half a surrogate pair
        atomic_write_text(partial / PAGE, html.encode("utf-8", "replace").decode())
    report.records = len(listed)
    return report


def _open(folder: Path) -> dict[str, PreparedSet]:
    """Open the sets in a folder, by the name of their split; a set without a split is under ""."""
    if not (folder / _SPLITS).is_file():
        return {"": store.load(folder)}
    return {path.parent.name: store.load(path.parent) for path in sorted(folder.glob(f"*/{MANIFEST}"))}


def _rejects(folder: Path, manifest: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the rows of rejects.jsonl; for one side of a split, from the folder above."""
    path = (
        folder.resolve().parent if manifest.get("split") and not (folder / _SPLITS).is_file() else folder
    ) / store.REJECTS
    if path.is_file():
        with open(path, encoding="utf-8", errors="replace") as file:
            yield from map(json.loads, file)


def _listed(name: str, prepared: PreparedSet, choice: Choice, folder: Path, report: PreviewReport) -> Iterator[Listed]:
    """Yield the records to list, each with its drawn images."""
    files = prepared.files
    for index in choice.listed:
        row = prepared.dataset[index]
        drawings: dict[int, Drawing | str] = {}
        for image in choice.drawn.get(index, ()):
            called = f"{name} record {index + 1}".strip()
            file = f"{PICTURES}/{called.replace(' ', '-')}-picture-{image + 1}.png"
            try:
                placed = _placed(files, row["pictures"][image])
            except ImageError as error:
                drawings[image] = str(error)
                report.problems.append(f"{called}: {error}")
                continue
            drawings[image] = _draw(placed, row, image, called, folder, file)
            report.images += 1
        extremes = tuple(extreme for extreme in choice.extremes if extreme.row == index)
        yield Listed(name, index + 1, row, drawings, extremes)


def _placed(files: ImageFiles, stored: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Return an image as the model receives it.

    Raises:
        ImageError: It cannot be opened, or is not the image that the set was prepared with.
    """
    layout, path = layout_of(stored), files.path(stored)
    image = files.open(stored)
    if image.size != (layout.width, layout.height):
        raise ImageError(
            Reason.PICTURE_BROKEN,
            f"now {image.width} x {image.height} pixels; the set was prepared with {layout.width} x {layout.height}",
            where=str(path),
            hint="put the image back, or prepare the set again",
        )
    return place(image, layout)


def _draw(
    placed: NDArray[np.uint8], row: Mapping[str, Any], image: int, called: str, folder: Path, file: str
) -> Drawing:
    """Write the PNG of one image; return its drawing for the page."""
    stored = row["pictures"][image]
    layout = layout_of(stored)
    images = f", image {image + 1} of {len(row['pictures'])}" if len(row["pictures"]) > 1 else ""
    sheet = draw_sheet(
        placed,
        layout,
        (f"{row['id']} - {called}{images}", name_of_image(stored), steps_of(layout)),
        token_counts_of_record(row),
    )
    sheet.save(folder / file, compress_level=4)  # a third of the time of the default, a tenth more bytes
    grid = draw_grid(placed, layout, *_EMBEDDED_GRID)
    return Drawing(file, _webp(grid), grid.size, _webp(drawn_view(placed, layout)))


def _webp(image: Image.Image) -> bytes:
    """Encode the image as WebP at the best quality that fits the size limit for embedded images."""
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=quality)
        if buffer.tell() <= _EMBEDDED_BYTES:
            break
    return buffer.getvalue()
