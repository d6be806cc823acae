"""Convert the entries of the JSON files of DocVQA, InfographicVQA, ChartQA, TextVQA and OCRBench to drafts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any

from ixtune.data.benchmarks.item import ItemDraft
from ixtune.data.benchmarks.values import id_in, kind_in, question_in, references_in, text_in
from ixtune.data.containers.json_text import field_entries, list_entries
from ixtune.data.sources.entry import Entry
from ixtune.errors import UsageError

_CHARTQA_KINDS = ("human", "augmented")


def docvqa(fields: Mapping[str, Any], entry: Entry) -> ItemDraft:
    """Read `{"data": [{questionId, question, image, answers, question_types}]}`; `image` begins with documents/."""
    del entry
    image = text_in(fields, "image")
    name = PurePosixPath(image).name
    return ItemDraft(
        id_in(fields, "questionId"),
        question_in(fields),
        references_in(fields, "answers"),
        # one of the two releases has the folder documents/, the other spdocvqa_images/
        images=((image, name, f"spdocvqa_images/{name}"),),
        kind=kind_in(fields, "question_types"),
    )


def infographicvqa(fields: Mapping[str, Any], entry: Entry) -> ItemDraft:
    """Read `{"data": [{questionId, question, image_local_name, answers, answer_type}]}`; types only in `_withQT`."""
    del entry
    name = text_in(fields, "image_local_name")
    return ItemDraft(
        id_in(fields, "questionId"),
        question_in(fields),
        references_in(fields, "answers"),
        images=((name, f"images/{name}", f"infographicsvqa_images/{name}"),),
        kind=kind_in(fields, "answer_type"),
    )


def chartqa(fields: Mapping[str, Any], entry: Entry) -> ItemDraft:
    """Read `[{imgname, query, label}]`; only the file's name shows whether a person wrote the questions."""
    name = text_in(fields, "imgname")
    kind = _chartqa_kind(Path(entry.file))
    return ItemDraft(
        f"{kind or 'question'}-{entry.number}",
        question_in(fields, "query"),
        references_in(fields, "label"),
        images=((f"png/{name}", name),),
        kind=kind,
    )


def textvqa(fields: Mapping[str, Any], entry: Entry) -> ItemDraft:
    """Read `{"data": [{question_id, question, image_id, answers}]}`: ten answers each, images named by OpenImages."""
    del entry
    name = f"{text_in(fields, 'image_id')}.jpg"
    return ItemDraft(
        id_in(fields, "question_id"),
        question_in(fields),
        references_in(fields, "answers"),
        images=((f"train_images/{name}", f"test_images/{name}", name),),
    )


def ocrbench(fields: Mapping[str, Any], entry: Entry) -> ItemDraft:
    """Read `[{dataset_name, id, image_path, question, answers, type}]`; an id is unique within its dataset."""
    del entry
    image = text_in(fields, "image_path")
    return ItemDraft(
        f"{text_in(fields, 'dataset_name')}-{id_in(fields, 'id')}",
        question_in(fields),
        references_in(fields, "answers"),
        images=((image, f"OCRBench_Images/{image}"),),
        kind=text_in(fields, "type"),
    )


def data_entries(path: Path) -> Iterator[Entry]:
    """Yield the entries of the field `data`."""
    return field_entries(path, "data")


def chartqa_entries(path: Path) -> Iterator[Entry]:
    """Yield the entries of a file, or of both files in a ChartQA folder, whose score is the mean of the two.

    Raises:
        UsageError: The folder contains neither of the two files.
    """
    if not path.is_dir():
        yield from list_entries(path)
        return
    files = [file for file in sorted(path.glob("*.json"), reverse=True) if _chartqa_kind(file)]
    if not files:
        raise UsageError(
            "the folder holds no *_human.json and no *_augmented.json",
            where=str(path),
            hint="pass a folder of ChartQA such as test, or one file",
        )
    numbers = count(1)
    for file in files:
        for entry in list_entries(file):
            yield Entry(next(numbers), entry.file, entry.place, value=entry.value, fault=entry.fault)


def _chartqa_kind(path: Path) -> str:
    return next((kind for kind in _CHARTQA_KINDS if path.stem == kind or path.stem.endswith(f"_{kind}")), "")
