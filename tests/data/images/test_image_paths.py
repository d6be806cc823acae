"""Test that image paths in all usual spellings are resolved."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ixtune.data.images.image_paths import SPELLINGS, Folders, inside, locate
from ixtune.data.rejects import Reason, RecordError

COMPOSED = unicodedata.normalize("NFC", "Größe é.png")
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)
FILES = ("photos/0.png", "photos/Deep Folder/UPPER.JPEG", f"accents/{COMPOSED}", f"apart/{DECOMPOSED}", "100%.png")

# as given, the file that is meant, what is noted
FOUND = [
    ("photos/0.png", FILES[0], ()),
    ("./photos//0.png", FILES[0], ()),
    ("photos/../photos/0.png", FILES[0], ()),
    ("photos\\0.png", FILES[0], ("path_backslashes",)),
    (".\\photos\\0.png", FILES[0], ("path_backslashes",)),
    (" photos/0.png\n", FILES[0], ("path_spaces",)),
    ("photos/Deep%20Folder/UPPER.JPEG", FILES[1], ("path_percent",)),
    ("photos/deep folder/upper.jpeg", FILES[1], ("path_letter_case",)),
    ("Photos\\deep%20folder\\upper.jpeg", FILES[1], ("path_backslashes", "path_percent", "path_letter_case")),
    (f"accents/{DECOMPOSED}", FILES[2], ("path_unicode",)),
    (f"apart/{COMPOSED}", FILES[3], ("path_unicode",)),
    (f"ACCENTS/{DECOMPOSED}", FILES[2], ("path_unicode", "path_letter_case")),
    (f"accents/{DECOMPOSED.upper()}", FILES[2], ("path_letter_case",)),
    ("100%.png", FILES[4], ()),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("base") / "root"
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    (root / "twice").mkdir()
    for name in ("a.png", "A.png"):
        (root / "twice" / name).write_bytes(b"x")
    (root.parent / "secret.png").write_bytes(b"x")
    (root / "link.png").symlink_to(root.parent / "secret.png")
    (root / "Way").symlink_to(root.parent)
    return root.resolve()


@pytest.mark.parametrize(("given", "file", "notes"), FOUND)
def test_a_path_is_found_and_its_correction_is_noted(root: Path, given: str, file: str, notes: tuple[str, ...]):
    found = locate(root, given)
    assert (found.path, found.file) == (file, root / file)
    assert found.notes == notes
    folders: Folders = {}
    assert [locate(root, given, folders) for _ in range(2)] == [found, found]


def test_every_path_correction_is_tested():
    assert {note for *_, notes in FOUND for note in notes} == set(SPELLINGS)
    assert all(SPELLINGS.values())


def test_an_absolute_path_below_the_root_is_found(root: Path):
    assert locate(root, str(root / FILES[0])).path == FILES[0]
    assert locate(root, f"{root}/PHOTOS/0.png").notes == ("path_letter_case",)


# as given, the reason, and words of the hint
REFUSED = [
    ("photos/9.png", Reason.PICTURE_MISSING, "--image-root"),
    ("photos/0.jpg", Reason.PICTURE_MISSING, "did you mean photos/0.png?"),
    ("twice/a.PNG", Reason.PICTURE_MISSING, "the exact name"),
    ("../secret.png", Reason.PATH_OUTSIDE_ROOT, "--image-root"),
    ("..\\secret.png", Reason.PICTURE_MISSING, "--image-root"),
    ("..%2Fsecret.png", Reason.PICTURE_MISSING, "--image-root"),
    ("link.png", Reason.PATH_OUTSIDE_ROOT, "--image-root"),
    ("LINK.PNG", Reason.PATH_OUTSIDE_ROOT, "--image-root"),
    ("way/secret.png", Reason.PATH_OUTSIDE_ROOT, "--image-root"),
    ("/etc/passwd", Reason.PATH_OUTSIDE_ROOT, "--image-root"),
    ("/home/me/data/photos/0.png", Reason.PATH_OUTSIDE_ROOT, "remove /home/me/data/ from the start"),
    ("C:\\Users\\me\\data\\photos\\0.png", Reason.PATH_OUTSIDE_ROOT, "remove C:\\Users\\me\\data\\ from the start"),
    ("D:/elsewhere/9.png", Reason.PATH_OUTSIDE_ROOT, "remove the leading folders"),
    ("a\0b", Reason.PICTURE_UNREADABLE, "correct the path"),
]


@pytest.mark.parametrize(("given", "reason", "hint"), REFUSED)
def test_a_path_to_no_file_is_refused_with_a_hint(root: Path, given: str, reason: Reason, hint: str):
    with pytest.raises(RecordError) as caught:
        locate(root, given, {})
    assert caught.value.reason is reason
    assert hint in caught.value.hint


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    st.lists(
        st.sampled_from([*"./\\%aA0 ", "..", "%2e", "%2F", "%5c", "photos", "PHOTOS", "Way", "link.png", "secret.png"]),
        max_size=12,
    )
)
def test_no_spelling_of_a_path_leads_out_of_the_root(root: Path, parts: list[str]):
    try:
        found = locate(root, "".join(parts))
    except RecordError:
        with pytest.raises(RecordError):
            locate(root, "".join(parts), {})
        return
    assert locate(root, "".join(parts), {}) == found
    assert os.path.realpath(found.file).startswith(str(root))
    assert inside(root, found.path) == (found.path, found.file)
