"""Test reading the headers of real files of every kind: valid, unusual and damaged."""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_files import open_files_below
from PIL import Image, ImageOps

from ixtune.data.images.header import DOCUMENT_PAGE, NOTES, Header, read_header
from ixtune.data.images.image_paths import SPELLINGS
from ixtune.data.images.pixels import NONE, Corrections, open_image
from ixtune.data.rejects import Reason, RecordError

ALL = Corrections(exif=True, alpha=True, depth=True, first_frame=True)
WIDTH, HEIGHT = 40, 24
# no two pixels alike, and enough detail that a compressed file is long enough to be cut
NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
RGB = Image.fromarray(NOISE[..., :3])


def saved(form: str, image: Image.Image = RGB, **settings: Any) -> bytes:
    file = BytesIO()
    image.save(file, form, **settings)
    return file.getvalue()


def heic() -> bytes:
    pillow_heif.register_heif_opener()
    return saved("HEIF")


def in_mode(mode: str) -> Image.Image:
    return (Image.fromarray(NOISE) if "A" in mode else RGB).convert(mode)


def lying(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F] = "A maker, whose name does not fit into its entry"
    exif[0x0112] = orientation
    return exif


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))


def png_header(width: int, height: int, depth: int = 8, colours: int = 2) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, depth, colours, 0, 0, 0))


def deep_rgb_png() -> bytes:
    """Return a 16-bit RGB PNG, which Pillow cannot write: the upper byte is NOISE, the lower one 77."""
    rows = b"".join(b"\0" + np.stack([row, np.full_like(row, 77)], axis=-1).tobytes() for row in NOISE[..., :3])
    return png_header(WIDTH, HEIGHT, 16) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def frames(form: str, count: int = 2, **settings: Any) -> bytes:
    turned = [RGB.rotate(180), RGB.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    return saved(form, save_all=True, append_images=turned[: count - 1], **settings)


GREY_16 = Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257)
FLOAT = Image.fromarray(NOISE[..., 0].astype(np.float32) / 255)

# file name, content, what is noted of it
TAKEN: list[tuple[str, Callable[[], bytes], tuple[str, ...]]] = [
    ("plain.jpg", lambda: saved("JPEG"), ()),
    ("progressive.jpeg", lambda: saved("JPEG", progressive=True), ()),
    ("grey.jpg", lambda: saved("JPEG", in_mode("L")), ()),
    ("plain.png", lambda: saved("PNG"), ()),
    ("one_bit.png", lambda: saved("PNG", in_mode("1")), ()),
    ("palette.png", lambda: saved("PNG", in_mode("P")), ()),
    ("lossy.webp", lambda: saved("WEBP"), ()),
    ("lossless.webp", lambda: saved("WEBP", lossless=True), ()),
    ("plain.tif", lambda: saved("TIFF"), ()),
    ("packed.tiff", lambda: saved("TIFF", compression="tiff_lzw"), ()),
    ("fax.tif", lambda: saved("TIFF", in_mode("1"), compression="group4"), ()),
    ("plain.bmp", lambda: saved("BMP"), ()),
    ("palette.bmp", lambda: saved("BMP", in_mode("P")), ()),
    ("plain.gif", lambda: saved("GIF"), ()),
    ("plain.ppm", lambda: saved("PPM"), ()),
    ("plain.jp2", lambda: saved("JPEG2000"), ()),
    ("photo.avif", lambda: saved("AVIF"), ()),
    ("photo.heic", lambda: heic(), ()),
    ("photo.jpg", lambda: heic(), ("wrong_extension",)),
    ("capitals.JPG", lambda: saved("JPEG"), ()),
    ("no_extension", lambda: saved("PNG"), ()),
    ("page.0017", lambda: saved("PNG"), ()),
    ("cmyk.jpg", lambda: saved("JPEG", in_mode("CMYK")), ("cmyk_converted",)),
    ("cmyk.tif", lambda: saved("TIFF", in_mode("CMYK")), ("cmyk_converted",)),
    ("grey_alpha.png", lambda: saved("PNG", in_mode("LA")), ("alpha_dropped",)),
    ("alpha.png", lambda: saved("PNG", in_mode("RGBA")), ("alpha_dropped",)),
    ("alpha.webp", lambda: saved("WEBP", in_mode("RGBA")), ("alpha_dropped",)),
    ("alpha.tif", lambda: saved("TIFF", in_mode("RGBA")), ("alpha_dropped",)),
    ("clear_palette.png", lambda: saved("PNG", in_mode("P"), transparency=12), ("alpha_dropped",)),
    ("many_clear.png", lambda: saved("PNG", in_mode("P"), transparency=bytes(range(256))), ("alpha_dropped",)),
    ("clear.gif", lambda: saved("GIF", in_mode("RGBA")), ("alpha_dropped",)),
    ("clear_colour.png", lambda: saved("PNG", transparency=(1, 2, 3)), ("alpha_dropped",)),
    ("jpeg.png", lambda: saved("JPEG"), ("wrong_extension",)),
    ("png.jpg", lambda: saved("PNG"), ("wrong_extension",)),
    ("webp.gif", lambda: saved("WEBP"), ("wrong_extension",)),
    ("lies.jpg", lambda: saved("JPEG", exif=lying(6)), ("exif_ignored",)),
    ("upright.jpg", lambda: saved("JPEG", exif=lying(1)), ()),
    ("no_such_orientation.jpg", lambda: saved("JPEG", exif=lying(9)), ()),
    ("damaged_exif.jpg", lambda: saved("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0"), ()),
    ("foreign_exif.jpg", lambda: saved("JPEG", exif=b"Exif\0\0not a TIFF at all"), ()),
    ("harmless_end.jpg", lambda: saved("JPEG") + b"\r\n<!-- from a camera -->", ()),
    ("harmless_end.png", lambda: saved("PNG") + b"\0\0\0", ()),
    ("harmless_end.webp", lambda: saved("WEBP") + b"\0\0\0", ()),
    ("harmless_end.gif", lambda: saved("GIF") + b"\0\0\0", ()),
    ("two_views.jpg", lambda: frames("MPO"), ()),
    ("everything.jpg", lambda: saved("WEBP", in_mode("RGBA"), exif=lying(3)),
     ("exif_ignored", "alpha_dropped", "wrong_extension")),
    ("16_bits_a_channel.png", deep_rgb_png, ()),
]  # fmt: skip

# file name, content, what it is refused for
REFUSED: list[tuple[str, Callable[[], bytes], Reason]] = [
    ("empty.png", lambda: b"", Reason.PICTURE_EMPTY),
    ("text.png", lambda: b"hello, I am a text", Reason.PICTURE_UNREADABLE),
    ("page.jpg", lambda: b"<!DOCTYPE html><html>404</html>", Reason.PICTURE_IS_HTML),
    ("lower.jpg", lambda: b"\n\n<html lang=en><body>Not found</body></html>", Reason.PICTURE_IS_HTML),
    ("answer.jpg", lambda: b'{"error": "not found"}', Reason.PICTURE_UNREADABLE),
    ("pointer.png", lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", Reason.GIT_LFS_POINTER),
    ("scan.dcm", lambda: bytes(128) + b"DICM" + bytes(20), Reason.PICTURE_DICOM),
    ("film.jpg", lambda: b"\0\0\0\x18ftypisom" + bytes(20), Reason.PICTURE_UNREADABLE),
    ("half.heic", lambda: half(heic()), Reason.PICTURE_BROKEN),
    ("half.avif", lambda: half(saved("AVIF")), Reason.PICTURE_BROKEN),
    ("beginning.heic", lambda: heic()[:40], Reason.PICTURE_BROKEN),
    ("letters.bmp", lambda: b"BMW is no bitmap", Reason.PICTURE_UNREADABLE),
    ("sound.webp", lambda: b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0" + bytes(20), Reason.PICTURE_UNREADABLE),
    ("drawing.eps", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", Reason.PICTURE_VECTOR),
    ("drawing.svg", lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>', Reason.PICTURE_VECTOR),
    ("old.svg", lambda: b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- made by -->\n<svg width="9">', Reason.PICTURE_VECTOR),
    ("half.jpg", lambda: half(saved("JPEG")), Reason.PICTURE_BROKEN),
    ("half.png", lambda: half(saved("PNG")), Reason.PICTURE_BROKEN),
    ("half.webp", lambda: half(saved("WEBP")), Reason.PICTURE_BROKEN),
    ("half_lossless.webp", lambda: half(saved("WEBP", lossless=True)), Reason.PICTURE_BROKEN),
    ("half.gif", lambda: half(saved("GIF")), Reason.PICTURE_BROKEN),
    ("half.bmp", lambda: half(saved("BMP")), Reason.PICTURE_BROKEN),
    ("half.ppm", lambda: half(saved("PPM")), Reason.PICTURE_BROKEN),
    ("half.jp2", lambda: half(saved("JPEG2000")), Reason.PICTURE_BROKEN),
    ("half.tif", lambda: half(saved("TIFF")), Reason.PICTURE_BROKEN),
    ("half_packed.tif", lambda: half(saved("TIFF", compression="tiff_lzw")), Reason.PICTURE_BROKEN),
    ("beginning.jpg", lambda: saved("JPEG")[:20], Reason.PICTURE_BROKEN),
    ("beginning.png", lambda: saved("PNG")[:20], Reason.PICTURE_BROKEN),
    ("beginning.gif", lambda: saved("GIF")[:8], Reason.PICTURE_BROKEN),
    ("no_pixels.png", lambda: png_header(0, 5) + chunk(b"IDAT", b"") + chunk(b"IEND", b""), Reason.PICTURE_BROKEN),
    ("bomb.png", lambda: png_header(100_000, 100_000) + chunk(b"IEND", b""), Reason.PICTURE_TOO_LARGE),
    ("wide.png", lambda: png_header(2**31 - 1, 1) + chunk(b"IEND", b""), Reason.PICTURE_TOO_LARGE),
    ("deep.png", lambda: saved("PNG", GREY_16), Reason.PICTURE_16_BIT),
    ("deep.tif", lambda: saved("TIFF", GREY_16), Reason.PICTURE_16_BIT),
    ("deep.pgm", lambda: saved("PPM", GREY_16), Reason.PICTURE_16_BIT),
    ("deep.jp2", lambda: saved("JPEG2000", GREY_16), Reason.PICTURE_16_BIT),
    ("32_bits.tif", lambda: saved("TIFF", GREY_16.convert("I")), Reason.PICTURE_16_BIT),
    ("float.tif", lambda: saved("TIFF", FLOAT), Reason.PICTURE_16_BIT),
    ("animated.gif", lambda: frames("GIF", 3), Reason.PICTURE_ANIMATED),
    ("animated.webp", lambda: frames("WEBP"), Reason.PICTURE_ANIMATED),
    ("animated.png", lambda: frames("PNG"), Reason.PICTURE_ANIMATED),
    ("pages.tif", lambda: frames("TIFF"), Reason.PICTURE_ANIMATED),
]  # fmt: skip


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def reason_of(source: Path | bytes, name: str, corrections: Corrections = NONE) -> Reason:
    with pytest.raises(RecordError) as caught:
        read_header(source, corrections, name=name)
    assert name in str(caught.value)
    assert caught.value.hint
    assert "\n" not in caught.value.what
    return caught.value.reason


@pytest.mark.parametrize(("name", "content", "notes"), TAKEN, ids=[name for name, *_ in TAKEN])
def test_a_good_image_is_accepted_with_its_notes(
    tmp_path: Path, name: str, content: Callable[[], bytes], notes: tuple[str, ...]
):
    path = write(tmp_path, name, content())
    found = read_header(path, NONE, name=name)
    assert found == Header(WIDTH, HEIGHT, notes)
    assert found == read_header(path.read_bytes(), NONE, name=name)
    assert open_image(path).size == (WIDTH, HEIGHT)


@pytest.mark.parametrize(("name", "content", "reason"), REFUSED, ids=[name for name, *_ in REFUSED])
def test_a_bad_image_is_refused_with_its_reason(
    tmp_path: Path, name: str, content: Callable[[], bytes], reason: Reason
):
    path = write(tmp_path, name, content())
    assert reason_of(path, name) == reason
    assert reason_of(path.read_bytes(), name) == reason


def test_every_note_occurs_and_has_a_description():
    with_corrections = {"exif_applied", "alpha_composited", "depth_scaled", "first_frame_taken"}
    elsewhere = {*SPELLINGS, DOCUMENT_PAGE}  # test_image_paths.py, test_prepare_documents.py
    assert {note for *_, notes in TAKEN for note in notes} | with_corrections == NOTES.keys() - elsewhere
    assert all(NOTES.values())


CORRECTED = {Reason.PICTURE_16_BIT: "depth_scaled", Reason.PICTURE_ANIMATED: "first_frame_taken"}
MENDED = [row for row in REFUSED if row[2] in CORRECTED]


@pytest.mark.parametrize(("name", "content", "reason"), MENDED, ids=[name for name, *_ in MENDED])
def test_each_correction_accepts_only_its_own_case(name: str, content: Callable[[], bytes], reason: Reason):
    depth = Corrections(depth=True)
    first_frame = Corrections(first_frame=True)
    own, other = (depth, first_frame) if reason == Reason.PICTURE_16_BIT else (first_frame, depth)
    assert read_header(content(), own, name=name) == Header(WIDTH, HEIGHT, (CORRECTED[reason],))
    assert reason_of(content(), name, other) == reason


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_image_has_the_size_and_pixels_of_the_upright_one(form: str, orientation: int):
    content = saved(form, exif=lying(orientation))
    name = f"a.{form.lower()}"
    corrected = Corrections(exif=True)
    upright = ImageOps.exif_transpose(Image.open(BytesIO(content)).convert("RGB"))
    if form == "TIFF":  # Pillow itself follows it when it decodes
        assert read_header(content, NONE, name=name) == read_header(content, corrected, name=name)
        upright = Image.open(BytesIO(content)).convert("RGB")
    found = read_header(content, corrected, name=name)
    assert (found.width, found.height) == upright.size
    assert np.array_equal(open_image(content, corrected), upright)
    if form != "TIFF":
        plain = read_header(content, NONE, name=name)
        assert plain == Header(WIDTH, HEIGHT, ("exif_ignored",) if orientation > 1 else ())
        assert found.notes == (("exif_applied",) if orientation > 1 else ())


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_the_orientation_is_found_in_either_byte_order(order: str, orientation: int):
    exif = lying(orientation)
    exif.endian = "<" if order == "little" else ">"
    content = saved("JPEG", exif=exif)
    assert (b"Exif\0\0II" if order == "little" else b"Exif\0\0MM") in content
    assert ("exif_ignored" in read_header(content, NONE, name="a.jpg").notes) == (orientation == 6)


@pytest.mark.parametrize(("name", "content", "notes"), TAKEN, ids=[name for name, *_ in TAKEN])
def test_the_header_size_equals_the_decoded_size_with_all_corrections(
    name: str, content: Callable[[], bytes], notes: tuple[str, ...]
):
    found = read_header(content(), ALL, name=name)
    assert open_image(content(), ALL).size == (found.width, found.height)
    applied = {"exif_ignored": "exif_applied", "alpha_dropped": "alpha_composited"}
    assert found.notes == tuple(applied.get(note, note) for note in notes)


def test_paths_that_are_not_files_have_their_own_reasons(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    write(tmp_path, "a.png", saved("PNG"))
    assert reason_of(tmp_path / "none.png", "none.png") == Reason.PICTURE_MISSING
    assert reason_of(tmp_path / "a.png" / "below.png", "below.png") == Reason.PICTURE_MISSING
    assert reason_of(tmp_path, "folder") == Reason.PICTURE_IS_FOLDER
    assert reason_of(tmp_path / "pipe.png", "pipe.png") == Reason.PICTURE_UNREADABLE  # and not waited for
    assert reason_of(tmp_path / "nul\0l.png", "nul\0l.png") == Reason.PICTURE_UNREADABLE
    assert reason_of(tmp_path / ("long" * 99), "long") == Reason.PICTURE_UNREADABLE
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    assert reason_of(tmp_path / "loop.png", "loop.png") == Reason.PICTURE_UNREADABLE


@pytest.fixture
def nobody() -> Iterator[None]:
    """Switch to a user without root's right to read every file."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield
    os.seteuid(before)


def test_a_file_without_read_permission_is_unreadable(tmp_path: Path, request: pytest.FixtureRequest):
    path = write(tmp_path, "a.png", saved("PNG"))
    path.chmod(0)
    request.getfixturevalue("nobody")
    assert reason_of(path, "a.png") == Reason.PICTURE_UNREADABLE
    with pytest.raises(RecordError, match="permission denied"):
        read_header(path, NONE, name="a.png")


def test_no_file_is_left_open(tmp_path: Path):
    paths = [write(tmp_path, name, content()) for name, content, _ in [*TAKEN, *REFUSED]]
    for path in [*paths, tmp_path, tmp_path / "none"]:
        with contextlib.suppress(RecordError):
            read_header(path, NONE, name="a")
            open_image(path)
    assert open_files_below(tmp_path) == []


def test_a_16_bit_rgb_image_keeps_the_upper_8_bits():
    assert np.array_equal(open_image(deep_rgb_png()), NOISE[..., :3])


def test_damage_in_the_middle_is_found_only_when_decoding():
    damaged = bytearray(saved("PNG"))
    damaged[len(damaged) // 2] ^= 0xFF
    assert read_header(bytes(damaged), NONE, name="a.png") == Header(WIDTH, HEIGHT, ())
    with pytest.raises(RecordError) as caught:
        open_image(bytes(damaged))
    assert caught.value.reason == Reason.PICTURE_BROKEN


def test_a_gif_cut_at_a_semicolon_is_not_taken_for_whole():
    """The trailer of a GIF is one `;`, a byte that its pixels contain too."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 80), dtype=np.uint8)
    whole = saved("GIF", Image.fromarray(noise))
    cut = next(at for at in range(len(whole) // 2, len(whole)) if whole[at - 1] == ord(";") and whole[at - 2])
    with pytest.raises(RecordError) as caught:
        read_header(whole[:cut], NONE, name="a.gif")
    assert caught.value.reason == Reason.PICTURE_BROKEN


WHOLE = [(name, content()) for name, content, _ in TAKEN if name.startswith(("plain", "lossy", "packed", "alpha"))]


@settings(deadline=None)
@given(st.sampled_from(WHOLE), st.floats(0, 1))
def test_a_truncated_file_is_refused_or_decodes(image: tuple[str, bytes], share: float):
    name, content = image
    cut = content[: int(share * len(content))]
    try:
        found = read_header(cut, NONE, name=name)
    except RecordError:
        return
    assert open_image(cut).size == (found.width, found.height)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(WHOLE), st.lists(st.tuples(st.floats(0, 0.3), st.integers(0, 255)), max_size=8))
def test_damage_anywhere_gives_a_reject_reason_and_no_other_error(
    image: tuple[str, bytes], changes: list[tuple[float, int]]
):
    name, content = image
    damaged = bytearray(content)
    for share, value in changes:
        damaged[int(share * len(content))] = value
    for corrections in (NONE, ALL):
        with contextlib.suppress(RecordError):
            found = read_header(bytes(damaged), corrections, name=name)
            assert open_image(bytes(damaged), corrections).size == (found.width, found.height)


@pytest.mark.parametrize(
    ("package", "content", "words"),
    [("pillow_heif", heic, "ixtune[heif]"), ("PIL._avif", lambda: saved("AVIF"), "force-reinstall pillow")],
)
def test_a_missing_package_is_named_in_the_refusal(
    monkeypatch: pytest.MonkeyPatch, package: str, content: Callable[[], bytes], words: str
):
    image = content()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RecordError) as caught:
        read_header(image, NONE, name="photo.jpg")
    assert caught.value.reason is Reason.NEEDS_EXTRA
    assert words in caught.value.hint
