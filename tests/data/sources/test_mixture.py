from __future__ import annotations

from pathlib import Path

import pytest

from ixtune.data.sources.mixture_file import is_mixture, read_mixture
from ixtune.data.sources.source import Source
from ixtune.errors import UsageError


@pytest.fixture
def mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that writes a mixture file next to some data; paths are relative so that messages are short."""
    monkeypatch.chdir(tmp_path)
    for name in ("mix/a.json", "mix/two words.json", "mix/page 7", "here.json"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("[]")

    def write(content: str | bytes) -> Path:
        path = Path("mix/data.txt")
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def test_numbers_are_thousands_of_records_as_in_the_official_scripts(mixture):
    path = mixture("\ufeffa.json 10\r\n\n  two words.json\t0.5  \na.json 1e-3\n")
    assert read_mixture(path) == (
        Source(path="mix/a.json", count=10_000),
        Source(path="mix/two words.json", count=500),
        Source(path="mix/a.json", count=1),
    )


def test_numbers_may_be_ratios_and_may_be_left_out(mixture):
    path = mixture("a.json 10\ntwo words.json\npage 7\n")
    assert read_mixture(path, given_num=False) == (
        Source(path="mix/a.json", weight=10.0),
        Source(path="mix/two words.json"),
        Source(path="mix/page 7"),
    )


def test_an_absolute_path_stays_absolute(mixture, tmp_path: Path):
    (one,) = read_mixture(mixture(f"{tmp_path}/here.json 2"))
    assert one == Source(path=str(tmp_path / "here.json"), count=2000)


def test_all_mistakes_are_reported_at_once_with_their_lines(mixture):
    path = mixture("a.json\ngone.json 10\n\nhere.json 1\na.json 0\na.json -1\na.json nan\na.json inf\na.json 0.0001\n")
    with pytest.raises(UsageError) as caught:
        read_mixture(path)
    assert list(caught.value.notes) == [
        "mix/data.txt:1: there is no number after the path; with --ratios none is needed",
        "mix/data.txt:2: there is no mix/gone.json; paths are relative to the mixture file",
        "mix/data.txt:4: there is no mix/here.json, but there is one relative to the current folder; "
        "paths are relative to the mixture file",
        "mix/data.txt:5: the number should be above 0, found 0",
        "mix/data.txt:6: the number should be above 0, found -1",
        "mix/data.txt:7: the number should be above 0, found nan",
        "mix/data.txt:8: the number should be above 0, found inf",
        "mix/data.txt:9: 0.0001 thousand records is less than one",
    ]
    assert caught.value.what == "8 mistakes in the mixture file"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "names no source"),
        ("\n \n", "names no source"),
        (b"a.json 1\n\xff\n", r"not UTF-8 text \(mix/data.txt:2\)"),
        (b"x" * 2_000_000, "larger than 1 MiB"),
        ("x" * 5000, "1 mistake in the mixture file"),
        ("a\0b 1", "1 mistake in the mixture file"),
    ],
)
def test_a_file_that_is_not_a_mixture_is_refused_in_one_line(mixture, content: str | bytes, told: str):
    with pytest.raises(UsageError, match=told) as caught:
        read_mixture(mixture(content))
    assert "\n" not in str(caught.value)


def test_a_missing_mixture_is_reported(tmp_path: Path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_mixture(tmp_path / "data.txt")


def test_a_mixture_is_recognized_by_its_extension():
    assert [is_mixture(Path(name)) for name in ("data.txt", "a.json", "txt")] == [True, False, False]
