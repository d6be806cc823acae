"""Detect how to read a source from its first records: form, schema, columns, and image locations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ixtune.data.images.image_paths import locate
from ixtune.data.record import Place
from ixtune.data.rejects import RecordError
from ixtune.data.schemas import conversation, messages
from ixtune.data.schemas.column_roles import (
    CONVERSATION_COLUMNS,
    check_columns,
    describe_columns,
    image_columns,
    named_columns,
)
from ixtune.data.schemas.document_pages import names_document
from ixtune.data.schemas.fields import LOSS_KEYS, OTHER_MEDIA, SYSTEM_NAMES, is_missing, listed
from ixtune.data.schemas.forms import FIELDS_AS_JSON, FORMS, form_of, has_only_fields
from ixtune.data.schemas.image_pattern import check_pattern, fields_in, guessed_pattern
from ixtune.data.schemas.image_values import image_at, says_image
from ixtune.data.schemas.record_reader import record_of
from ixtune.data.schemas.schema_detection import conversation_field, schema_of, usual_name
from ixtune.data.schemas.turns import turns_in
from ixtune.data.schemas.value_paths import first_name, look_up, path_of, take
from ixtune.data.sources.entry import Entry
from ixtune.data.sources.first_records import Rows, first_records, names_in
from ixtune.data.sources.source import Container, Reading, Schema, Source
from ixtune.errors import UsageError

_SAMPLES = 50
_IMAGES_LOOKED_FOR = 20

SCHEMA_NAMES = {
    Schema.IXC: "InternLM-XComposer conversations",
    Schema.LLAVA: "LLaVA conversations",
    Schema.SHAREGPT: "ShareGPT conversations",
    Schema.OPENAI: "OpenAI messages",
    Schema.COLUMNS: "questions and answers",
}


@dataclass(frozen=True, slots=True)
class Understood:
    """Detected settings for reading a source.

    Attributes:
        reading: Settings for the workers.
        form: Name of the form or the schema.
        why: Reason for the schema; for a table, the role of each column.
        notes: Further remarks for the user, each a part of a sentence.
    """

    reading: Reading
    form: str
    why: str
    notes: tuple[str, ...]


def understand(
    source: Source,
    container: Container,
    read: Callable[[], Iterator[Entry]],
    names: Sequence[str] | None,
    root: Path | None,
) -> Understood:
    """Detect the settings for reading the records of a source.

    Args:
        source: Settings from the user.
        container: Format in which the records are stored.
        read: Function that yields the entries from the beginning.
        names: Column names, if the container has any.
        root: The image root.

    Raises:
        UsageError: The first records contradict each other or what the user says, or several fields fit.
        IxtuneError: The source holds no record.
    """
    records = first_records(read, source, container)
    pattern = check_pattern(source.image_pattern) if source.image_pattern is not None else None
    base = Reading(
        Schema.COLUMNS,
        columns=source.columns,
        question=source.question,
        system=source.system,
        tags=source.tags,
        image_pattern=pattern,
        image_root=root,
        remote_root=source.remote_root,
        image_named=pattern is not None or any(ours == "image" for ours, _ in source.columns),
        answer_named=any(ours == "answer" for ours, _ in source.columns),
        missing_placeholder=source.missing_placeholder,
        allow_image_text=bool(source.allow_image_text),
        answers=source.answers,
    )
    form, rewritten = _form(records, source, container, base)
    base = replace(base, form=form)
    if not rewritten:  # each record will report its own error
        return Understood(base, _form_name(base), "no record can be read", ())
    schema, why, field = _schema(rewritten, source, form)
    base = replace(base, schema=schema)
    if schema is Schema.COLUMNS:
        rewritten_names = names_in(rewritten) if form is not None or names is None else list(names)
        return _table(source, base, rewritten, rewritten_names)
    return _conversation(source, base, rewritten, field, why)


def _form(records: Rows, source: Source, container: Container, base: Reading) -> tuple[str | None, Rows]:
    """Detect the form of the records and rewrite them; a form must not use a field that the user names."""
    key = form_of(records) if source.schema in (None, Schema.COLUMNS) and not source.tags else None
    if key is None and not source.columns and container in (Container.BESIDE, Container.WEBDATASET):
        key = FIELDS_AS_JSON if any(map(has_only_fields, records)) else None
        if key is not None and source.question is None and container is Container.BESIDE:
            raise UsageError(
                "there is a file next to each image, but no question",
                where=source.name,
                hint='pass one, and the fields of the file are its answer: --question "Extract all fields as JSON."',
                notes=[f"fields found: {', '.join(map(repr, names_in(records)))}"],
            )
        key = key if source.question is not None else None
    if key is None:
        return None, records
    rewritten: Rows = []
    for record in records:
        with suppress(RecordError):
            rewritten.append(FORMS[key].rewrite(dict(record), base))
    if not rewritten and FORMS[key].schema is None:
        return key, records  # each record will report its own error
    before, after = names_in(records), names_in(rewritten)
    taken = [
        theirs for _, theirs in source.columns for one in theirs.split(",") if first_name(one, before) not in after
    ]
    if any(first_name(one, before) in before for one in taken):
        return None, records
    return key, rewritten


def _schema(records: Rows, source: Source, form: str | None) -> tuple[Schema, str, str | None]:
    """Return the schema, the reason for it, and the field of a conversation that has another name."""
    if form is not None and (meant := FORMS[form].schema) is not None:
        return meant, "", None
    if source.schema is not None:
        return source.schema, "", dict(source.columns).get("messages")
    field = conversation_field(records, source)
    if field is not None:
        usual = usual_name(records, field, source)
        renamed: Rows = []
        for record in records:
            fields = dict(record)
            fields[usual] = take(fields, field)
            renamed.append(fields)
        schema, why = schema_of(renamed, source)
        return schema, why, field
    schema, why = schema_of(records, source)
    return schema, why, None


def _table(source: Source, base: Reading, records: Rows, names: list[str]) -> Understood:
    """Return the settings for reading a table."""
    notes: list[str] = []
    candidates = [] if base.image_named else _candidates(records, names, base)
    columns = check_columns(names, source, candidates)
    if "page" in columns and all(ours != "page" for ours, _ in source.columns):
        shown_in = columns.get("image", "").split(",")
        if not any(names_document(look_up(record, name)) for record in records for name in shown_in if name):
            del columns["page"]
    reading = replace(base, columns=tuple(columns.items()))
    if not base.image_named:
        given = columns.get("image", "")
        if not given or not _any_file(records, given, base.image_root):
            texts = {columns.get(ours) for ours in ("question", "answer", "system")}
            tried = given.split(",") if given else [name for name in names if name not in texts]
            if not given and _names_image(records, tried):
                tried = [name for name in tried if says_image(name)]
            reading = _with_guess(reading, records, tried, notes)
    used = fields_in(reading.image_pattern) if reading.image_pattern is not None else []
    left = [name for name in names if name not in used or name in columns.values()]
    why = describe_columns(columns, left, replace(source, image_pattern=reading.image_pattern))
    return Understood(reading, _form_name(reading), why, tuple(notes))


def _conversation(source: Source, base: Reading, records: Rows, field: str | None, why: str) -> Understood:
    """Return the settings for reading conversations."""
    notes: list[str] = []
    names = names_in(records)
    columns, wrong = named_columns(names, source, CONVERSATION_COLUMNS)
    if field is not None:
        columns["messages"] = field
        notes.append(f"conversations from {field}")
    alias = [name for name in SYSTEM_NAMES if name in names]
    if len(alias) == 1 and "system" not in names and "system" not in columns:
        columns["system"] = alias[0]
        notes.append(f"system from {alias[0]}")
    own = (messages.FIELD, *messages.IMAGE_FIELDS) if base.schema is Schema.OPENAI else (conversation.FIELD, "image")
    own = (*own, "images") if base.schema is Schema.SHAREGPT else own
    named = {first_name(one, names) for theirs in columns.values() for one in theirs.split(",")}
    known = {*own, "id", "system", "hd_num", *named}
    left = [name for name in names if name not in known]
    reading = replace(base, columns=tuple(columns.items()))
    found = [] if base.image_named else _candidates(records, left, reading)
    if theirs := image_columns(found, left, wrong):
        columns["image"] = theirs
        notes.append(f"image from {theirs}")
        taken = {first_name(one, names) for one in theirs.split(",")}
        left = [name for name in left if name not in taken]
        if not _any_file(records, theirs, base.image_root):
            base = _with_guess(base, records, theirs.split(","), notes)
            if base.image_pattern is not None:
                del columns["image"]
    if wrong:
        raise UsageError(
            wrong[0],
            where=source.name,
            hint="name the fields, e.g. --columns image=image_path",
            notes=[*wrong[1:], f"fields found: {', '.join(map(repr, names)) or 'none'}"],
        )
    if left:
        notes.append(f"not used: {listed(left)}")
    if beside := _unused_in_turns(records, columns.get("messages") or own[0], source):
        notes.append(f"not used in turns: {listed(beside)}")
    reading = replace(base, columns=tuple(columns.items()))
    return Understood(reading, _form_name(reading), why, tuple(notes))


def _unused_in_turns(records: Rows, field: str, source: Source) -> list[str]:
    """Return the keys of turns that have a value and are not read, such as `reasoning_content`."""
    known = {*(key for keys in conversation.TURN_KEYS for key in keys), *conversation.TURN_IMAGES, *LOSS_KEYS}
    known |= {value for _, value in source.tags}
    turns = [turn for record in records for turn in turns_in(look_up(record, field))]
    says = [
        str(key) for turn in turns for key, value in turn.items() if key not in known and value not in _SAYS_NOTHING
    ]
    return list(dict.fromkeys(says))


def _form_name(reading: Reading) -> str:
    """Return the name of the form of the records, or of their schema."""
    name = SCHEMA_NAMES[reading.schema]
    if reading.form is None:
        return name
    form = FORMS[reading.form]
    return form.name if form.schema is not None else f"{name}, {form.name}"


def _names_image(records: Rows, names: Sequence[str]) -> bool:
    """Return whether a field holds an image's address, so that a number in `id` does not name another image."""
    return any(image_at(record.get(name), name, None, names=False) for record in records for name in names)


def _with_guess(reading: Reading, records: Rows, tried: Sequence[str], notes: list[str]) -> Reading:
    """Return the settings with the pattern of the image paths, if one matches."""
    pattern = guessed_pattern(records, reading.image_root, tried)
    if pattern is None or pattern in (f"{{{name}}}" for name in tried):
        return reading
    notes.append(f"images found at {pattern}")
    return replace(reading, image_pattern=pattern)


def _candidates(records: Rows, names: Sequence[str], reading: Reading) -> list[str]:
    """Return fields, or paths into them, whose values are images, if no record shows an image without them.

    Fields that no record has at the same time count as one: records may name the image differently.
    """
    found: Counter[str] = Counter()
    together = False
    for record in records:
        if _shows_image(record, reading):
            return []
        here = {  # a dict, because a set would lose the column order
            path_of(place): None
            for name in names
            if not (name == "file_name" and reading.schema is Schema.COLUMNS)
            and name not in (*_IMAGE_FIELDS, *OTHER_MEDIA)
            and (place := image_at(record.get(name), name, reading.image_root, addresses=False, names=False))
        }
        together = together or len(here) > 1
        found.update(list(here))
    return list(found) if together or len(found) < 2 else [",".join(found)]


_IMAGE_FIELDS = ("image", "images")
_SAYS_NOTHING: tuple[Any, ...] = (None, "", [], {})


def _shows_image(record: Mapping[str, Any], reading: Reading) -> bool:
    """Return whether a record has an image in the fields that its schema reads."""
    if any(not is_missing(record.get(name)) and record[name] not in ("", [], ()) for name in _IMAGE_FIELDS):
        return True
    if reading.schema is Schema.COLUMNS:
        return bool(record.get("file_name"))
    entry = _entry(record)
    with suppress(RecordError):
        return bool(record_of(entry, replace(reading, form=None, allow_image_text=True)).images)
    return False


def _entry(record: Mapping[str, Any]) -> Entry:
    return Entry(1, "", Place("row", 1), value=record)


def _any_file(records: Rows, column: str, root: Path | None) -> bool:
    """Return whether one of the first records contains its image or names an existing file."""
    for record in records[:_IMAGES_LOOKED_FOR]:
        for path in column.split(","):
            value = look_up(record, path)
            if value is None or value == "":
                continue
            texts = value if isinstance(value, list) else [value]
            if not all(isinstance(text, str) for text in texts) or root is None:
                return True
            if any(text[:5] in ("data:", "file:") or len(text) > 1000 or _is_there(root, text) for text in texts):
                return True
    return False


def _is_there(root: Path, text: str) -> bool:
    try:
        return locate(root, text).file.is_file()
    except (RecordError, OSError, ValueError):
        return False
