from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import write_image

from ixtune.data.record import ImageRef
from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.image_references import image_of, images_of

CONTENT = b"\x89PNG\r\n\x1a\n and the rest"
BASE64 = base64.b64encode(CONTENT).decode()


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("a.png", "a.png"),
        ("deep/a b%20c.png", "deep/a b%20c.png"),
        ("/data/a.png", "/data/a.png"),
        (r"C:\data\a.png", r"C:\data\a.png"),
        ("bild-ä.png", "bild-ä.png"),
        ("data.png", "data.png"),
        ("file.png", "file.png"),
        ("file:///data/a.png", "/data/a.png"),
        ("FILE:///data/a.png", "/data/a.png"),
        ("file://localhost/data/a%20b.png", "/data/a b.png"),
        ("file:/data/%C3%A4.png", "/data/ä.png"),
        ("file:///data/a?b#c.png", "/data/a?b#c.png"),
        ({"path": "a.png"}, "a.png"),
        ({"bytes": None, "path": "a.png"}, "a.png"),
    ],
)
def test_a_path_is_recognized_in_every_spelling(value: Any, path: str):
    assert image_of(value, "`image`") == ImageRef(path, path=path)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (f"data:image/png;base64,{BASE64}", "`image`"),
        (f"DATA:Image/JPEG;charset=x;Base64,{BASE64}", "`image`"),
        (CONTENT, "`image`"),
        (bytearray(CONTENT), "`image`"),
        ({"bytes": CONTENT}, "`image`"),
        ({"bytes": CONTENT, "path": None}, "`image`"),
        ({"bytes": CONTENT, "path": "a.png"}, "a.png"),
    ],
)
def test_content_is_kept_unchanged(value: Any, name: str):
    assert image_of(value, "`image`") == ImageRef(name, content=CONTENT)


@pytest.mark.parametrize(
    ("value", "reason", "found"),
    [
        ("", Reason.BAD_IMAGE_FIELD, "an empty text"),
        (b"", Reason.BAD_IMAGE_FIELD, "empty"),
        (5, Reason.BAD_IMAGE_FIELD, "is 5"),
        (True, Reason.BAD_IMAGE_FIELD, "true"),
        (None, Reason.BAD_IMAGE_FIELD, "null"),
        (float("nan"), Reason.MISSING_FIELD, "NaN"),
        ([], Reason.BAD_IMAGE_FIELD, "an empty list"),
        ({}, Reason.BAD_IMAGE_FIELD, "an empty object"),
        ({"link": "a.png"}, Reason.BAD_IMAGE_FIELD, "an object with the fields link"),
        ({"bytes": None, "path": None}, Reason.BAD_IMAGE_FIELD, "neither bytes nor a path"),
        ({"bytes": "text"}, Reason.BAD_IMAGE_FIELD, '"text"'),
        ({"bytes": b""}, Reason.BAD_IMAGE_FIELD, "empty"),
        ({"path": 5}, Reason.BAD_IMAGE_FIELD, "is 5"),
        ("http://example.org/a.png", Reason.PICTURE_REMOTE, "http://example.org/a.png"),
        ("HTTPS://example.org/a.png", Reason.PICTURE_REMOTE, "HTTPS"),
        ("s3://bucket/a.png", Reason.PICTURE_REMOTE, "s3://"),
        ("gs://bucket/a.png", Reason.PICTURE_REMOTE, "gs://"),
        ("file://server/share/a.png", Reason.PICTURE_REMOTE, '"server"'),
        ("file://a.png", Reason.PICTURE_REMOTE, '"a.png"'),
        ("file:a.png", Reason.BAD_IMAGE_FIELD, "no absolute path"),
        ("file:///data/%FF.png", Reason.BAD_IMAGE_FIELD, "escapes that are not"),
        ("file:///data/a%00.png", Reason.NULL_CHARACTER, "null character"),
        ("data:image/png;base64,", Reason.BAD_IMAGE_FIELD, "empty"),
        ("data:image/png;base64,abc", Reason.BAD_IMAGE_FIELD, "padding"),
        ("data:image/png;base64,ab*=", Reason.BAD_IMAGE_FIELD, "base64 of `image` is broken"),
        ("data:image/png;base64,äbc=", Reason.BAD_IMAGE_FIELD, "broken"),
        (f"data:image/png,{BASE64}", Reason.BAD_IMAGE_FIELD, "without base64"),
        (f"data:text/plain;base64,{BASE64}", Reason.BAD_IMAGE_FIELD, '"text/plain"'),
        (f"data:;base64,{BASE64}", Reason.BAD_IMAGE_FIELD, "not of an image"),
        ("data:image/png", Reason.BAD_IMAGE_FIELD, "not of an image"),
        ("QUJD" * 2000, Reason.BAD_IMAGE_FIELD, "longer than any path"),
        ("a.png;b.png", Reason.BAD_IMAGE_FIELD, "2 paths separated by ;"),
        ("a.png|b.png", Reason.BAD_IMAGE_FIELD, "2 paths separated by |"),
        ("a.png, b.png", Reason.BAD_IMAGE_FIELD, "2 paths separated by ,"),
        ("a\0.png", Reason.NULL_CHARACTER, "character 2"),
        ("\ud83d.png", Reason.INVALID_UNICODE, "character 1"),
        ({"bytes": CONTENT, "path": "\ud83d.png"}, Reason.INVALID_UNICODE, "character 1"),
    ],
)
def test_a_value_that_is_not_an_image_is_refused_with_its_reason(value: Any, reason: Reason, found: str):
    with pytest.raises(RecordError) as caught:
        image_of(value, "`image`")
    assert caught.value.reason == reason
    assert found in str(caught.value)
    assert caught.value.hint


def test_base64_without_a_prefix_is_detected_by_magic_bytes():
    content = CONTENT + bytes(200)
    assert image_of(base64.b64encode(content).decode(), "`image`").content == content
    with pytest.raises(RecordError) as caught:
        image_of("QUJD" * 2000, "`image`")
    assert "data:image/png;base64," in caught.value.hint


def test_a_field_may_hold_one_image_a_list_or_none():
    assert images_of(None, "image") == images_of([], "image") == ()
    assert images_of("", "image") == images_of("[]", "image") == ()
    assert images_of('["a.png"]', "image") == images_of("['a.png']", "image") == (ImageRef("a.png", path="a.png"),)
    assert images_of("a.png", "image") == images_of(["a.png"], "image") == (ImageRef("a.png", path="a.png"),)
    with pytest.raises(RecordError, match="`image` 2 is null"):
        images_of(["a.png", None], "image")


@given(content=st.binary(min_size=1))
def test_a_data_url_gives_back_every_byte(content: bytes):
    address = f"data:image/webp;base64,{base64.b64encode(content).decode()}"
    assert image_of(address, "x").content == content


@given(name=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20))
def test_every_path_is_recovered_from_its_file_url(tmp_path_factory: pytest.TempPathFactory, name: str):
    path = Path("/data") / name.replace("/", "_")
    assert image_of(path.as_uri(), "x").path == str(path)


def test_a_real_file_is_found_by_its_file_url(tmp_path: Path):
    image = write_image(tmp_path / "mit Leerzeichen" / "ä #1.png")
    path = image_of(image.as_uri(), "x").path
    assert path is not None
    assert Path(path).read_bytes() == image.read_bytes()
