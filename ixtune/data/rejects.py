"""Why a record is not taken: the table of reason codes, the error, and one row of rejects.jsonl."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum

from ixtune.errors import IxtuneError


class Reason(StrEnum):
    """All reason codes; `description` says for each what it means."""

    description: str

    def __new__(cls, code: str, description: str) -> Reason:
        """A member is its code as text, with the description beside it."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.description = description
        return member

    # the form of the record
    NOT_JSON = "not_json", "a line of a JSON Lines file is not JSON"
    NOT_A_RECORD = "not_a_record", "the entry is not a JSON object"
    BAD_ID = "bad_id", "`id` is missing, or neither text nor a whole number"
    DUPLICATE_ID = "duplicate_id", "an earlier record has the same id"
    BAD_IMAGE_FIELD = "bad_image_field", "`image` is neither a path nor a list of paths"
    BAD_CONVERSATIONS = (
        "bad_conversations",
        "`conversations` is not a list of {from, value} with text in both",
    )
    INVALID_UNICODE = "invalid_unicode", "a text holds half of a surrogate pair, which is no character"

    # the conversation
    UNKNOWN_ROLE = "unknown_role", "`from` names nobody known"
    SYSTEM_ROLE = "system_role", "a system turn; the training template has none"
    REPEATED_ROLE = "repeated_role", "two turns of the same side in a row"
    STARTS_WITH_ASSISTANT = "starts_with_assistant", "the first turn is the assistant's"
    ENDS_WITH_USER = "ends_with_user", "the last turn is the user's, so nothing answers it"
    EMPTY_ANSWER = "empty_answer", "an assistant turn without text"
    EMPTY_QUESTION = "empty_question", "a user turn with neither text nor picture"
    SPECIAL_TOKEN_IN_TEXT = "special_token_in_text", "a text spells a piece of the chat template"
    UNKNOWN_CHARACTER = "unknown_character", "a text holds a character that the vocabulary cannot express"
    MISSING_PLACEHOLDER = "missing_placeholder", "a record with pictures says nowhere <ImageHere>"
    TOO_FEW_PLACEHOLDERS = "too_few_placeholders", "fewer <ImageHere> than pictures"
    TOO_MANY_PLACEHOLDERS = "too_many_placeholders", "more <ImageHere> than pictures"
    PLACEHOLDER_IN_ANSWER = "placeholder_in_answer", "<ImageHere> in an assistant turn"
    TOO_LONG = "too_long", "more tokens than --max-tokens; nothing is ever cut off"

    # the pictures
    PATH_OUTSIDE_ROOT = "path_outside_root", "the path leads out of the image root, perhaps through a link"
    PICTURE_MISSING = "picture_missing", "there is no file at this path"
    PICTURE_IS_FOLDER = "picture_is_folder", "the path is a folder"
    PICTURE_EMPTY = "picture_empty", "the file has no content"
    PICTURE_UNREADABLE = "picture_unreadable", "the file cannot be opened as a picture"
    PICTURE_BROKEN = "picture_broken", "the header is a picture's, its data are broken or cut short"
    PICTURE_TOO_LARGE = "picture_too_large", "more pixels than can be decoded safely"
    NO_LAYOUT = "no_layout", "the picture is too thin to be resized at this hd_num"


class RecordError(IxtuneError):
    """Something in one record keeps it from being taken.

    Args:
        reason: The reason code.
        found: What was found, in one line.
        where: The picture it was found in, if it was in one.
        mend: What to do about it, in one line.
    """

    def __init__(self, reason: Reason, found: str, *, where: str | None = None, mend: str) -> None:
        super().__init__(found, where=where, mend=mend)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Reject:
    """A record that was not taken, and how to mend it.

    Attributes:
        source: The file it was read from.
        record: Its number among the entries of that file, counted from 1.
        line: The line on which it begins, counted from 1.
        id: Its id, if it has one.
        reason: The reason code.
        found: What was found, in one line.
        mend: What to do about it, in one line.
    """

    source: str
    record: int
    line: int
    id: str | None
    reason: Reason
    found: str
    mend: str

    def row(self) -> bytes:
        """The line of rejects.jsonl, UTF-8 with its newline."""
        fields = {
            "source": self.source,
            "record": self.record,
            "line": self.line,
            "id": self.id,
            "reason": self.reason.value,
            "found": self.found,
            "mend": self.mend,
        }
        # half a surrogate pair has no UTF-8; its backslash form is what JSON itself would write
        return (json.dumps(fields, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
