from __future__ import annotations

from pathlib import Path

import pytest

from ixtune.data.sources.data_config import columns_of, format_of, is_config, read_config
from ixtune.data.sources.source import Container, Schema, Source
from ixtune.errors import UsageError


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that writes a config next to some data; paths are relative so that messages are short."""
    monkeypatch.chdir(tmp_path)
    for name in ("mix/a.csv", "mix/b.jsonl", "mix/pages/1.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("x")

    def write(content: str | bytes) -> Path:
        path = Path("mix/data.yaml")
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def mistakes(path: Path) -> list[str]:
    with pytest.raises(UsageError) as caught:
        read_config(path)
    assert "\n" not in str(caught.value)
    return list(caught.value.notes)


def test_each_source_has_its_own_settings_and_relative_paths(config):
    path = config("""
sources:
  - path: a.csv
    format: csv+columns
    columns: {image: [front, back], question: q, answer: a}
    hd_num: 25
    weight: 2
  - path: b.jsonl
    format: llava
    image_root: pages
    system: You read pages.
    count: 500
  - path: someone/receipts
    format: hub
    split: train
    config: en
    question: What is the total?
""")
    assert read_config(path) == (
        Source(
            path="mix/a.csv",
            container=Container.CSV,
            schema=Schema.COLUMNS,
            columns=(("image", "front,back"), ("question", "q"), ("answer", "a")),
            hd_num=25,
            weight=2.0,
        ),
        Source(
            path="mix/b.jsonl", schema=Schema.LLAVA, image_root=Path("mix/pages"), system="You read pages.", count=500
        ),
        Source(
            path="someone/receipts", container=Container.HUB, split="train", config="en", question="What is the total?"
        ),
    )


def test_an_absolute_path_stays_absolute(config, tmp_path: Path):
    (one,) = read_config(config(f"sources: [{{path: {tmp_path}/mix/a.csv}}]"))
    assert one == Source(path=str(tmp_path / "mix" / "a.csv"))


def test_all_mistakes_are_reported_at_once_with_their_lines(config):
    path = config("""sources:
  - path: a.csv
    hd_num: many
    weihgt: 2
    columns: {imge: a, question: 3}
  - pth: b.jsonl
  - path: gone.json
    weight: 1
    count: 10
    image_root: gone
    format: lava
  - just a text
  - path: b.jsonl
    weight: 0
    count: true
    system: [x]
base: nano
""")
    assert mistakes(path) == [
        'mix/data.yaml:3: sources.0.hd_num should be a whole number of at least 1, found "many"',
        "mix/data.yaml:4: unknown key sources.0.weihgt; did you mean weight?",
        "mix/data.yaml:5: sources.0.columns.question should be a column's name, found 3",
        "mix/data.yaml:5: unknown key sources.0.columns.imge; did you mean image?",
        "mix/data.yaml:6: sources.1.path is missing: a file, a folder, or the name of a dataset on the hub",
        "mix/data.yaml:6: unknown key sources.1.pth; did you mean path?",
        "mix/data.yaml:7: sources.2.path: there is no file or folder mix/gone.json; "
        "for a dataset on the hub add format: hub",
        "mix/data.yaml:9: sources.2 has a weight and a count, which contradict each other; keep one",
        "mix/data.yaml:10: sources.2.image_root: there is no folder mix/gone",
        "mix/data.yaml:11: there is no format lava; did you mean llava?; known are json, jsonl, csv, tsv, parquet, "
        "arrow, hub, imagefolder, classes, beside, object, sheet, webdataset, ixc, llava, sharegpt, openai, columns",
        'mix/data.yaml:12: sources.3 should be a section with a path, found "just a text"',
        "mix/data.yaml:14: sources.4.weight should be a number above 0, found 0",
        "mix/data.yaml:15: sources.4 has a weight and a count, which contradict each other; keep one",
        "mix/data.yaml:15: sources.4.count should be a whole number of at least 1, found true",
        "mix/data.yaml:16: sources.4.system should be a text, found a list of 1",
        "mix/data.yaml:17: unknown key base; known are sources",
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("sources:", "sources should be a list of sources"),
        ("sources: a.csv", "sources should be a list of sources"),
        ("sources: []", "sources should be a list of sources"),
        ("source: [{path: a.csv}]", "did you mean sources?"),
        ("sources: [{}]", "sources.0.path is missing"),
        ("sources: [~]", "sources.0 should be a section with a path"),
        ("sources: [{path: ''}]", "sources.0.path should be a text, found an empty text"),
        ("sources: [{path: [a.csv]}]", "sources.0.path should be a text, found a list of 1"),
        (f"sources: [{{path: {'x' * 5000}}}]", "there is no file or folder"),
        ("sources: [{path: a.csv, weight: .nan}]", "should be a number above 0"),
        ("sources: [{path: a.csv, weight: .inf}]", "should be a number above 0"),
        ("sources: [{path: a.csv, weight: '2'}]", "should be a number above 0"),
        ("sources: [{path: a.csv, count: 2.5}]", "should be a whole number of at least 1"),
        ("sources: [{path: a.csv, format: [csv]}]", "sources.0.format should be a text"),
        ("sources: [{path: a.csv, columns: q}]", "should be a section of OURS: THEIRS"),
        ("sources: [{path: a.csv, columns: {image: []}}]", "a column's name, or a list of them"),
        ("sources: [{path: a.csv, columns: {question: [a, b]}}]", "should be a column's name, found a list of 2"),
        ("sources: [{path: a.csv, path: b.jsonl}]", "sources.0.path is given twice"),
        ("sources: [{path: !!python/name:os.system x}]", "not a text, number, list or section"),
    ],
)
def test_a_mistake_is_reported_with_its_line(config, content: str, told: str):
    found = mistakes(config(content))
    assert any(told in line for line in found), found
    assert all(line.startswith("mix/data.yaml:1: ") for line in found)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "the data config holds no keys"),
        ("- path: a.csv", "the data config holds no keys"),
        ("sources: [", "the data config is not valid YAML"),
        ("sources: [{path: &a a.csv}, {path: *a}]", "aliases are not allowed in data configs"),
        (b"sources: \xff", "the data config is not UTF-8 text"),
        (b"#" * 70_000, "this is not a data config: larger than 64 KiB"),
    ],
)
def test_a_file_that_is_not_a_config_is_refused_in_one_line(config, content: str | bytes, told: str):
    with pytest.raises(UsageError, match=told) as caught:
        read_config(config(content))
    assert "recipe" not in f"{caught.value} {caught.value.hint}"


def test_a_missing_config_is_reported(tmp_path: Path):
    with pytest.raises(UsageError, match="no such data config file"):
        read_config(tmp_path / "none.yaml")


def test_a_config_is_recognized_by_its_extension():
    assert [is_config(Path(name)) for name in ("a.yaml", "a.YML", "a.json", "yaml")] == [True, True, False, False]


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("jsonl", (Container.JSONL, None)),
        ("LLaVA", (None, Schema.LLAVA)),
        ("parquet+openai", (Container.PARQUET, Schema.OPENAI)),
        ("columns+csv", (Container.CSV, Schema.COLUMNS)),
    ],
)
def test_a_format_word_names_a_container_a_schema_or_both(word: str, meant: tuple[Container | None, Schema | None]):
    assert format_of(word) == meant


def test_every_container_and_schema_has_its_own_format_word():
    assert all(format_of(one.value) == (one, None) for one in Container)
    assert all(format_of(one.value) == (None, one) for one in Schema)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("lava", "there is no format lava; did you mean llava?"),
        ("", "there is no format "),
        ("csv+tsv", "there is no format csv+tsv"),
        ("xyzzy", "there is no format xyzzy"),
    ],
)
def test_an_unknown_format_is_refused_with_the_list_of_formats(word: str, told: str):
    with pytest.raises(UsageError) as caught:
        format_of(word)
    assert caught.value.what == told
    listed = " ".join(caught.value.notes)
    assert all(one.value in listed for one in (*Container, *Schema))


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("", ()),
        ("image=photo", (("image", "photo"),)),
        ("image=front,back, question = q", (("image", "front,back"), ("question", "q"))),
        ("image=,answer=a=b", (("image", ""), ("answer", "a=b"))),
    ],
)
def test_columns_are_pairs_separated_by_commas(text: str, columns: tuple[tuple[str, str], ...]):
    assert columns_of(text) == columns


@pytest.mark.parametrize("text", ["photo", "=photo", "image=a,,b", ",image=a", "image=a,=b"])
def test_malformed_columns_are_refused(text: str):
    with pytest.raises(UsageError, match="not of the form OURS=THEIRS"):
        columns_of(text)
