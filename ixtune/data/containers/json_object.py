"""Read the records in one JSON object: official benchmark files, the VQA v2 pair, COCO captions.

    {"data": [{"question": ..., "image": ..., "answers": [...]}]}      DocVQA, InfographicVQA, TextVQA
    {"data": [{"paragraphs": [...]}]}                                  SQuAD, see paragraphs
    {"questions": [{question_id, image_id, question}]}                 VQA v2, with a second file
    {"annotations": [{question_id, multiple_choice_answer, answers}]}
    {"images": [{id, file_name}], "annotations": [{image_id, caption}]}  COCO captions

The entries are rows with the fields of the file; joined fields get the names of our columns.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from ixtune.data.containers.json_stream import ListReader
from ixtune.data.containers.json_text import field_entries
from ixtune.data.rejects import Reason
from ixtune.data.schemas.fields import listed
from ixtune.data.schemas.image_values import is_path_of_image
from ixtune.data.sources.entry import Entry, Fault
from ixtune.data.sources.source import Source
from ixtune.errors import IxtuneError, UsageError

# lists that belong to one record: an object with one of these is itself a record
_OF_ONE_RECORD = ("conversations", "conversation", "messages", "texts", "images", "image", "history", "qa", "qas")
_RECORD_FIELDS = (
    *("question", "query", "prompt", "instruction", "conversations", "conversation", "messages", "caption", "answer"),
    *("answers", "image", "images", "file_name", "text", "texts", "imgname", "paragraphs"),
    *("image_path", "image_name", "caption_str", "prefix", "suffix"),
)
_ANNOTATION_FIELDS = ("multiple_choice_answer", "answers", "answer")


def records_lists(path: Path) -> dict[str, Mapping[str, Any]]:
    """Return the lists of records in a file that is one JSON object: name -> first record. Empty if it has none.

    Raises:
        IxtuneError: The file is not an object, or its JSON is broken.
    """
    with (
        open(path, "rb") as raw,
        io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file,
    ):
        firsts = ListReader(file, path).firsts()
    lists = {name: first for name, first in firsts.items() if isinstance(first, Mapping)}
    if _is_coco(lists):
        return lists
    return {
        name: first
        for name, first in lists.items()
        if name not in _OF_ONE_RECORD and ("question_id" in first or any(one in first for one in _RECORD_FIELDS))
    }


def is_questions(path: Path) -> bool:
    """Return whether a file holds questions of VQA v2, whose answers are in a second file."""
    lists = _lists_or_none(path)
    return "questions" in lists and not any(name in lists["questions"] for name in _ANNOTATION_FIELDS)


def is_annotations(path: Path) -> bool:
    """Return whether a file holds the answers to questions of VQA v2."""
    lists = _lists_or_none(path)
    return "annotations" in lists and "question_id" in lists["annotations"]


def open_object(source: Source) -> tuple[partial[Iterator[Entry]], tuple[Path, ...], str]:
    """Find the records of a JSON object.

    Returns:
        Their reader, the files it reads, and a note for the description of the source.

    Raises:
        UsageError: There are several lists and none is chosen, the second file of a pair is missing, or nothing in
            the file is a list of records.
    """
    path = Path(source.path)
    lists = records_lists(path)
    if lists and all(is_path_of_image(name) for name in lists):
        raise UsageError(
            f"the object has the names of images as keys, such as {next(iter(lists))}",
            where=source.path,
            hint='write records with the key as their `image`: [{"image": ..., "question": ..., "answer": ...}]',
        )
    if source.split is None and _is_coco(lists):
        if "caption" not in lists["annotations"]:
            raise UsageError(
                f"the annotations have no caption, only {listed(lists['annotations'])}",
                where=source.path,
                hint="pass a captions_*.json; boxes and segments are not trained here",
            )
        return partial(_captions, path), (path,), "; COCO captions joined with their images"
    if source.split is None and is_questions(path):
        answers = source.annotations or _annotations_next_to(path)
        note = f"; questions joined with the answers of {answers.name}"
        return partial(_answered_questions, path, answers), (path, answers), note
    if source.split is not None and source.split in lists:
        return partial(field_entries, path, source.split), (path,), f"; the list under {source.split}"
    if len(lists) == 1 and source.split is None and not is_annotations(path):
        (name,) = lists
        return partial(field_entries, path, name), (path,), f"; the list under {name}"
    if is_annotations(path):
        raise UsageError(
            "the file holds answers without their questions",
            where=source.path,
            hint=f"pass both files: ixtune prepare QUESTIONS.json {path.name}",
        )
    raise UsageError(
        f"the object holds the lists {listed(lists)}" + (f", but no {source.split}" if source.split else ""),
        where=source.path,
        hint=f"choose one with --split, e.g. --split {next(iter(lists), 'train')}",
    )


def _is_coco(lists: Mapping[str, Mapping[str, Any]]) -> bool:
    images, annotations = lists.get("images", {}), lists.get("annotations", {})
    return "file_name" in images and "image_id" in annotations


@lru_cache(maxsize=32)
def _lists_of(path: Path, modified: int) -> dict[str, Mapping[str, Any]]:
    del modified
    return records_lists(path)


def _lists_or_none(path: Path) -> Mapping[str, Mapping[str, Any]]:
    try:
        with open(path, "rb") as file:
            if not file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
                return {}
        return _lists_of(path, path.stat().st_mtime_ns)
    except (OSError, IxtuneError):
        return {}


def _annotations_next_to(path: Path) -> Path:
    """Return the answer file in the folder of the questions.

    Raises:
        UsageError: There is none, or there are several.
    """
    near = [one for one in sorted(path.parent.glob("*.json")) if one != path and is_annotations(one)]
    # v2_OpenEnded_mscoco_val2014_questions.json and v2_mscoco_val2014_annotations.json share the name of a split
    subset = [one for one in near if any(word in path.name for word in _words(one) if any(map(str.isdigit, word)))]
    chosen = subset if len(near) > 1 else near
    if len(chosen) == 1:
        return chosen[0]
    raise UsageError(
        "the file holds questions without answers"
        + (f", and {listed(one.name for one in near)} may be theirs" if near else ""),
        where=str(path),
        hint=f"pass both files: ixtune prepare {path.name} ANNOTATIONS.json",
    )


def _words(path: Path) -> list[str]:
    return [word for word in path.stem.split("_") if word != "v2"]


@lru_cache(maxsize=2)
def _answers_of(path: Path, modified: int) -> dict[Any, tuple[str | None, tuple[str, ...]]]:
    """Return question id -> (most common answer, all answers); repeated texts are stored once."""
    del modified
    answers: dict[Any, tuple[str | None, tuple[str, ...]]] = {}
    for entry in field_entries(path, "annotations"):
        if not isinstance(entry.value, Mapping):
            continue
        given = entry.value.get("answers")
        texts = [one.get("answer") if isinstance(one, Mapping) else one for one in given or ()]
        most = entry.value.get("multiple_choice_answer", entry.value.get("answer"))
        kept = tuple(sys.intern(one) for one in texts if isinstance(one, str))
        answers[entry.value.get("question_id")] = (sys.intern(most) if isinstance(most, str) else None, kept)
    return answers


def _answered_questions(questions: Path, annotations: Path) -> Iterator[Entry]:
    """Yield the questions of VQA v2 with their answers."""
    answers = _answers_of(annotations, annotations.stat().st_mtime_ns)
    for entry in field_entries(questions, "questions"):
        if entry.fault is not None or not isinstance(entry.value, Mapping):
            yield entry
            continue
        most, everyone = answers.get(entry.value.get("question_id"), (None, ()))
        answer = most if most is not None else next(iter(everyone), None)
        if answer is None:
            found = f"{annotations.name} has no answer to the question {entry.value.get('question_id')}"
            yield replace(entry, value=None, fault=Fault(Reason.MISSING_FIELD, found, "pass the files of one split"))
            continue
        row = {name: value for name, value in entry.value.items() if name != "question_id"}
        row |= {"id": entry.value.get("question_id"), "answer": answer, "references": list(everyone) or None}
        yield replace(entry, value=row)


def _captions(path: Path) -> Iterator[Entry]:
    """Yield the captions of COCO with their image files, one row per caption."""
    files: dict[Any, Any] = {}
    for entry in field_entries(path, "images"):
        if isinstance(entry.value, Mapping):
            files[entry.value.get("id")] = entry.value.get("file_name")
    for entry in field_entries(path, "annotations"):
        if entry.fault is not None or not isinstance(entry.value, Mapping):
            yield entry
            continue
        file = files.get(entry.value.get("image_id"))
        if not file:
            found = f"there is no image with the id {entry.value.get('image_id')} in `images`"
            yield replace(entry, value=None, fault=Fault(Reason.MISSING_FIELD, found, "write the file again"))
            continue
        yield replace(entry, value={"id": entry.value.get("id"), "image": file, "answer": entry.value.get("caption")})
