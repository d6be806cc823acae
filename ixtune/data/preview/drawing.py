"""Draw one image as the model receives it: resized and padded, with crop grid, global view and token counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ixtune.layout import PatchLayout

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image, ImageDraw, ImageFont

MAX_SHEET_WIDTH = 1400
"""Width of a sheet in pixels: fits a laptop's screen without scaling."""

VIEW = 336
"""Side of the drawn global view in pixels."""

_MARGIN, _GAP = 20, 24
_MAX_GRID = (MAX_SHEET_WIDTH - 2 * _MARGIN - _GAP - VIEW, 1200)
_MIN_TITLE_WIDTH = 860  # for a sheet with a single crop: ids and sizes still fit on their lines

_PAPER, _INK, _QUIET = (255, 255, 255), (26, 28, 36), (98, 102, 116)
GRID_COLOUR = (214, 20, 90)
"""Color of the crop borders: rare in images, and drawn on a light outline for images that contain it."""
HATCH_COLOUR = (140, 146, 166)
"""Color of the hatching over the padding."""
_CASING = (255, 255, 255, 150)
_LABEL = (20, 22, 30, 190)
_HATCH_PERIOD, _HATCH_STROKE = 12, 2
_SMALL_CROP, _FOLD_GAP = 60, 12  # a strip is folded if its crops are smaller than this

_PART_NAMES = {
    "global_view": "global view",
    "global_newlines": "newlines of the global view",
    "separator": "separator",
    "crop_newlines": "newlines of the crops",
}


def token_counts(layout: PatchLayout) -> list[tuple[str, int]]:
    """Return the image's token count by purpose; the numbers add up to `layout.tokens`."""
    parts = layout.member.token_parts(layout.rows, layout.cols)
    names = _PART_NAMES | {"crops": "1 crop" if layout.crops == 1 else f"{layout.crops:,} crops"}
    return [(names[key], count) for key, count in parts.items()]


def token_counts_of_record(row: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return the token counts of the whole record as lines; `row` is a row of the store."""
    images = row["pictures"]
    image = [("image tokens of the record", sum(stored["tokens"] for stored in images))] if len(images) > 1 else []
    return [
        *image,
        ("text tokens", len(row["token_ids"])),
        ("tokens of the record", row["length"]),
        ("of these supervised", row["supervised_tokens"]),
    ]


def steps_of(layout: PatchLayout) -> str:
    """Describe the steps from the original size to the crops in one line."""
    sides = ("left", "top", "right", "bottom")
    padding = [f"{count:,} {side}" for side in sides if (count := getattr(layout, f"pad_{side}"))]
    own, resized = (layout.width, layout.height), (layout.resized_width, layout.resized_height)
    words = [f"{own[0]} x {own[1]}", "kept as it is" if own == resized else f"resized {resized[0]} x {resized[1]}"]
    if padding:
        words.append(f"padded to {layout.final_width} x {layout.final_height} ({', '.join(padding)})")
    words.append(f"{layout.rows} x {layout.cols} crops, hd_num {layout.hd_num}")
    return " -> ".join(words)


def padding_share(layout: PatchLayout) -> float:
    """Return the fraction of the crops' pixels that is padding, 0 to 1."""
    return 1 - layout.resized_width * layout.resized_height / (layout.final_width * layout.final_height)


def global_view(placed: NDArray[np.uint8], side: int = VIEW) -> NDArray[np.uint8]:
    """Return the global view: the placed image resized to one crop, as the model sees it, uint8 [side, side, 3].

    Bicubic with a = -0.75 and without antialiasing (MODEL.md 2.4), so a large image looks as rough here as it
    is for the model. Overshoot of the cubic kernel is clipped, which the model does not do.
    """
    import numpy as np

    rows = _squeezed(placed.astype(np.float32), side)
    columns = _squeezed(rows.transpose(1, 0, 2), side).transpose(1, 0, 2)
    return np.clip(np.rint(columns), 0, 255).astype(np.uint8)


def drawn_view(placed: NDArray[np.uint8], layout: PatchLayout) -> Image.Image:
    """Return the global view of a placed image, enlarged to [VIEW, VIEW] pixels for display."""
    from PIL import Image

    view = Image.fromarray(global_view(placed, layout.member.crop))
    return view if view.size == (VIEW, VIEW) else view.resize((VIEW, VIEW), Image.Resampling.LANCZOS)


def _squeezed(values: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Resample the first axis to `side` by cubic convolution."""
    import numpy as np

    size = values.shape[0]
    centre = (np.arange(side) + 0.5) * size / side - 0.5
    first = np.floor(centre).astype(int)
    a = -0.75
    out = np.zeros((side, *values.shape[1:]), dtype=np.float32)
    for tap in (-1, 0, 1, 2):
        distance = np.abs(centre - first - tap)
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = a * (((distance - 5) * distance + 8) * distance - 4)
        weight = np.where(distance <= 1, near, far).astype(np.float32)
        out += weight[:, None, None] * values[np.clip(first + tap, 0, size - 1)]
    return out


def draw_grid(placed: NDArray[np.uint8], layout: PatchLayout, max_width: int, max_height: int) -> Image.Image:
    """Draw the placed image, never enlarged, with hatched padding and framed, numbered crops.

    A strip whose crops would be too small to see is folded: a wide one into lines, a tall one into columns.

    Args:
        placed: uint8 [final_height, final_width, 3] of `pixels.place`.
        layout: The layout that it was placed with.
        max_width: Maximum width of the drawing in pixels.
        max_height: Maximum height of the drawing in pixels.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    parts, side = _fold(layout, max_width, max_height)
    size = (max(1, round(layout.cols * side)), max(1, round(layout.rows * side)))
    image = Image.fromarray(placed)
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)

    pixels = np.array(image)
    pixels[_hatch(layout, size)] = HATCH_COLOUR
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image, "RGBA")
    across = [round(col * size[0] / layout.cols) for col in range(layout.cols + 1)]
    down = [round(row * size[1] / layout.rows) for row in range(layout.rows + 1)]
    for x in across[1:-1]:
        draw.rectangle((x - 1, 0, x + 1, size[1]), fill=_CASING)
    for y in down[1:-1]:
        draw.rectangle((0, y - 1, size[0], y + 1), fill=_CASING)
    for x in across:
        draw.line([(min(x, size[0] - 1), 0), (min(x, size[0] - 1), size[1])], fill=GRID_COLOUR)
    for y in down:
        draw.line([(0, min(y, size[1] - 1)), (size[0], min(y, size[1] - 1))], fill=GRID_COLOUR)
    _number(draw, across[:-1], down[:-1], side)
    return image if parts == 1 else _folded(image, layout, across, down, parts)


def _fold(layout: PatchLayout, max_width: int, max_height: int) -> tuple[int, float]:
    """Return the number of parts that a drawing is folded into along its longer side, and the side of a crop."""
    wide = layout.cols >= layout.rows
    long, short = (layout.cols, layout.rows) if wide else (layout.rows, layout.cols)
    room_long, room_short = (max_width, max_height) if wide else (max_height, max_width)

    def side(parts: int) -> float:
        if parts == 1:
            return min(layout.member.crop, room_long / long, room_short / short)
        # each part is a pixel larger for its last line, and another by rounding
        free = room_short - (parts - 1) * _FOLD_GAP - 2 * parts
        return min(layout.member.crop, (room_long - 2) / math.ceil(long / parts), free / (parts * short))

    if side(1) >= _SMALL_CROP:
        return 1, side(1)
    best = max(range(1, long + 1), key=lambda parts: (side(parts), -parts))
    return best, side(best)


def _folded(
    image: Image.Image, layout: PatchLayout, across: Sequence[int], down: Sequence[int], parts: int
) -> Image.Image:
    """Cut `image` between crops into `parts`, stacked vertically, or side by side if it is tall."""
    from PIL import Image

    wide = layout.cols >= layout.rows
    edges = across if wide else down
    each = math.ceil((len(edges) - 1) / parts)
    cuts = [*edges[:-1:each], edges[-1]]
    height, width = image.height, image.width
    # with the line at its end, which belongs to the next one
    spans = [(start, min(end + 1, width if wide else height)) for start, end in zip(cuts, cuts[1:], strict=False)]
    longest = max(end - start for start, end in spans)
    short = (height if wide else width) + _FOLD_GAP
    total = len(spans) * short - _FOLD_GAP
    sheet = Image.new("RGB", (longest, total) if wide else (total, longest), _PAPER)
    for number, (start, end) in enumerate(spans):
        if wide:
            sheet.paste(image.crop((start, 0, end, height)), (0, number * short))
        else:
            sheet.paste(image.crop((0, start, width, end)), (number * short, 0))
    return sheet


def _hatch(layout: PatchLayout, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask of the hatching over the padding in a drawing of `size` (width, height)."""
    import numpy as np

    x, y = np.arange(size[0])[None, :], np.arange(size[1])[:, None]
    # the rightmost and lowest pixel of the image, scaled down, may hold a little padding: it counts as image
    left, right = layout.pad_left, layout.pad_left + layout.resized_width
    top, bottom = layout.pad_top, layout.pad_top + layout.resized_height
    wide, high = size[0] / layout.final_width, size[1] / layout.final_height
    inside = (
        (x >= math.floor(left * wide))
        & (x < math.ceil(right * wide))
        & (y >= math.floor(top * high))
        & (y < math.ceil(bottom * high))
    )
    strokes = (x + y) % _HATCH_PERIOD < _HATCH_STROKE
    return np.asarray(strokes & ~inside)


def _number(draw: ImageDraw.ImageDraw, across: Sequence[int], down: Sequence[int], side: float) -> None:
    """Number the crops in reading order, in their upper left corners; only some of them if the crops are small."""
    font = _font(min(22, max(9, round(side / 6))))
    last = len(across) * len(down)
    pad = max(1, round(font.size / 5))
    # neighboring numbers must not overlap
    every = math.ceil((font.getlength(str(last)) + 2 * pad + 4) / side)
    height = sum(font.getmetrics())
    for row, y in enumerate(down):
        for col, x in enumerate(across):
            number = row * len(across) + col + 1
            if (number - 1) % every:
                continue
            text = str(number)
            box = (x + 3, y + 3, x + 3 + round(font.getlength(text)) + 2 * pad, y + 3 + height)
            draw.rectangle(box, fill=_LABEL)
            draw.text((x + 3 + pad, y + 3), text, font=font, fill=(255, 255, 255, 255))


def draw_sheet(
    placed: NDArray[np.uint8], layout: PatchLayout, heading: Sequence[str], record: Sequence[tuple[str, int]]
) -> Image.Image:
    """Draw a sheet at most `MAX_SHEET_WIDTH` wide: heading, grid, and a column with global view and token counts.

    Args:
        placed: uint8 [final_height, final_width, 3] of `pixels.place`.
        layout: The layout that it was placed with.
        heading: Lines above the grid, the first in larger type.
        record: More lines of token counts, about the whole record.
    """
    from PIL import Image, ImageDraw

    grid = draw_grid(placed, layout, *_MAX_GRID)
    entries: list[tuple[str, int] | None] = [
        *token_counts(layout),
        None,
        ("tokens of this image", layout.tokens),
        *([None, *record] if record else []),
    ]
    column_height = VIEW + 34 + 24 * len(entries)
    title_height = 34 + 22 * len(heading[1:]) + 8
    content = max(grid.width + _GAP + VIEW, _MIN_TITLE_WIDTH)
    height = _MARGIN + title_height + max(grid.height, column_height) + _MARGIN
    sheet = Image.new("RGB", (content + 2 * _MARGIN, height), _PAPER)
    draw = ImageDraw.Draw(sheet)

    y = _MARGIN
    for number, line in enumerate(heading):
        font = _font(15 if number else 22)
        draw.text((_MARGIN, y), _fitted(line, font, content), font=font, fill=_QUIET if number else _INK)
        y += 22 if number else 34
    y += 8
    sheet.paste(grid, (_MARGIN, y))
    x = _MARGIN + grid.width + _GAP
    sheet.paste(drawn_view(placed, layout), (x, y))
    draw.rectangle((x - 1, y - 1, x + VIEW, y + VIEW), outline=_QUIET)
    small = _font(15)
    side = layout.member.crop
    caption = f"global view: all of it, padding included, as {side} x {side}"
    draw.text((x, y + VIEW + 6), caption, font=_font(13), fill=_QUIET)
    y += VIEW + 34
    for entry in entries:
        if entry is None:
            draw.line([(x, y + 10), (x + VIEW, y + 10)], fill=_QUIET)
        else:
            number_text = f"{entry[1]:,}"
            draw.text((x, y), entry[0], font=small, fill=_INK)
            draw.text((x + VIEW - small.getlength(number_text), y), number_text, font=small, fill=_INK)
        y += 24
    return sheet


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return Pillow's built-in font, so that no font file of the machine is needed."""
    from PIL import ImageFont

    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # a Pillow without FreeType has a bitmap font, in one size
    return font


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Return `text` in one line of at most `width`, shortened in the middle if necessary; the font is ASCII only."""
    plain = "".join(letter if " " <= letter <= "~" else "?" for letter in text[:2000])
    if font.getlength(plain) <= width:
        return plain
    keep = len(plain)
    while keep > 2 and font.getlength(plain[: keep // 2] + "..." + plain[-(keep // 2) :]) > width:
        keep -= max(1, keep // 20)
    return plain[: keep // 2] + "..." + plain[-(keep // 2) :]
