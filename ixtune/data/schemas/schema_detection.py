"""Detect the schema of a source from its first records; contradictions are an error, never a guess."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ixtune.data.containers.container_detection import formats, one_object
from ixtune.data.schemas import conversation, messages
from ixtune.data.schemas.column_roles import CONVERSATION_COLUMNS
from ixtune.data.schemas.fields import is_missing, listed
from ixtune.data.schemas.turns import IMAGE
from ixtune.data.schemas.value_paths import look_up, object_in_text
from ixtune.data.sources.source import Schema, Source
from ixtune.data.text.conversation_rules import PLACEHOLDER
from ixtune.errors import UsageError

_OFFICIAL_ROLES = ("user", "assistant")
_OF_RECORDS = (conversation.FIELD, messages.FIELD, "question", "answer", "answers", "image", "images")
_OF_ONE_RECORD = ("question", "query", "prompt", "instruction", "answer", "response", "image", "file_name")
# other names for a conversation, accepted if its turns have a known format
_OTHER_NAMES = ("conversation", "dialog", "dialogue", "dialogues", "chat", "turns")


def schema_of(records: Sequence[Mapping[str, Any]], source: Source) -> tuple[Schema, str]:
    """Return the schema of some records, and the reason for it.

    Args:
        records: The first ones of a source, at least one, with conversations under their usual names.
        source: `columns` or `question` with a question or an answer means a table.

    Raises:
        UsageError: The records are of several schemas.
    """
    in_conversations = [record for record in records if not is_missing(record.get(conversation.FIELD))]
    in_messages = [record for record in records if not is_missing(record.get(messages.FIELD))]
    if source.question is not None or any(ours not in CONVERSATION_COLUMNS for ours, _ in source.columns):
        return Schema.COLUMNS, "columns are named"
    if in_conversations and in_messages:
        candidates = (_schema_of_conversations(in_conversations, source)[0], Schema.OPENAI)
        raise _contradiction(f"there are both `{conversation.FIELD}` and `{messages.FIELD}`", candidates, source)
    if in_messages:
        return Schema.OPENAI, f"records have `{messages.FIELD}`{_images_of_messages(in_messages)}"
    if in_conversations:
        return _schema_of_conversations(in_conversations, source)
    if len(records) == 1 and _is_around_records(records[0]):
        raise one_object(dict(records[0]), source.name)
    return Schema.COLUMNS, f"records have neither `{conversation.FIELD}` nor `{messages.FIELD}`"


def conversation_field(records: Sequence[Mapping[str, Any]], source: Source) -> str | None:
    """Return the field that holds conversations under another name than the usual two; None if there is none.

    Args:
        records: The first ones of a source.
        source: `--columns messages=FIELD` names the field.
    """
    named = dict(source.columns).get("messages")
    if named:
        return named
    if any(not is_missing(record.get(name)) for record in records for name in (conversation.FIELD, messages.FIELD)):
        return None
    for name in _OTHER_NAMES:
        if any(_keys_of_turns(record.get(name)) for record in records):
            return name
    return None


def usual_name(records: Sequence[Mapping[str, Any]], field: str, source: Source) -> str:
    """Return whether the turns under a field are those of `conversations` or of `messages`.

    Args:
        records: The first ones of a source.
        field: A name or a path.
        source: If it has tags, the turns are those of `conversations`.
    """
    keys = {_keys_of_turns(look_up(record, field)) for record in records} - {None}
    return messages.FIELD if keys == {conversation.TURN_KEYS[1]} and not source.tags else conversation.FIELD


def _keys_of_turns(value: Any) -> tuple[str, str] | None:
    """Return the keys of role and text in the first turn, None if it is not a turn."""
    if isinstance(value, str):
        value = object_in_text(value)
    first = value[0] if isinstance(value, list | tuple) and value else None
    if not isinstance(first, Mapping):
        return None
    return next((keys for keys in conversation.TURN_KEYS if all(key in first for key in keys)), None)


def _schema_of_conversations(records: Sequence[Mapping[str, Any]], source: Source) -> tuple[Schema, str]:
    texts = [[text for _, text in _turns(record)] for record in records]
    ours = sum(any(PLACEHOLDER in text for text in one) for one in texts)
    theirs = sum(any(IMAGE in text for text in one) for one in texts)
    fields = {name for record in records for name in ("image", "images", "system") if record.get(name) is not None}
    # ShareGPT's reader takes all that LLaVA's does, so one record with its fields is enough
    like_llava = Schema.SHAREGPT if fields & {"images", "system"} else Schema.LLAVA
    if ours and theirs:
        found = f"{PLACEHOLDER} occurs in {_count(ours)}, {IMAGE} in {_count(theirs)}"
        raise _contradiction(found, (Schema.IXC, like_llava), source)
    if ours and "images" in fields:
        raise _contradiction(f"there are {PLACEHOLDER} and `images`", (Schema.IXC, Schema.SHAREGPT), source)
    if ours:
        return Schema.IXC, f"records have `{conversation.FIELD}` with {PLACEHOLDER}"
    if theirs:
        also = f" and `{min(fields & {'images', 'system'})}`" if like_llava is Schema.SHAREGPT else ""
        return like_llava, f"records have `{conversation.FIELD}` with {IMAGE}{also}"
    names = sorted({name for record in records for name, _ in _turns(record)})
    why = f"records have `{conversation.FIELD}` of {listed(names)}" if names else f"records have `{conversation.FIELD}`"
    if fields & {"images", "system"}:
        return Schema.SHAREGPT, f"{why}, and `{min(fields & {'images', 'system'})}`"
    official = any(name.lower() in _OFFICIAL_ROLES for name in names) and all("id" in record for record in records)
    if official and not any("role" in turn for record in records for turn in _mappings(record)):
        return Schema.IXC, f"{why}, and ids"
    return (Schema.LLAVA, f"{why}, and `image`") if "image" in fields else (Schema.SHAREGPT, why)


def _turns(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (role name, text) of the turns that have both as text."""
    for turn in _mappings(record):
        for role, text in conversation.TURN_KEYS:
            if isinstance(turn.get(role), str) and isinstance(turn.get(text), str):
                yield turn[role], turn[text]
                break


def _mappings(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    turns = record[conversation.FIELD]
    turns = object_in_text(turns) if isinstance(turns, str) else turns
    return [turn for turn in turns if isinstance(turn, Mapping)] if isinstance(turns, list | tuple) else []


def _images_of_messages(records: Sequence[Mapping[str, Any]]) -> str:
    if any(record.get(name) is not None for record in records for name in messages.IMAGE_FIELDS):
        return " and images next to them"
    return ""


def _is_around_records(record: Mapping[str, Any]) -> bool:
    """Return whether an object is a whole file with a list of records rather than one record."""
    if any(name in record for name in _OF_ONE_RECORD):
        return False
    firsts = [value[0] for value in record.values() if isinstance(value, list) and value]
    return any(isinstance(first, Mapping) and any(name in first for name in _OF_RECORDS) for first in firsts)


def _contradiction(found: str, candidates: Sequence[Schema], source: Source) -> UsageError:
    return UsageError(
        f"the format is ambiguous: {found}",
        where=source.name,
        hint=f"choose it with {formats(candidates)}, or pass each kind of record as a separate source",
    )


def _count(records: int) -> str:
    return f"{records} record" if records == 1 else f"{records} records"
