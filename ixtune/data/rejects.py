"""Rejects: the table of reason codes, the error, and one row of rejects.jsonl."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum

from ixtune.data.record import Place
from ixtune.errors import IxtuneError


class Reason(StrEnum):
    """Reason codes; `description` explains each."""

    description: str

    def __new__(cls, code: str, description: str) -> Reason:
        """Create a member: its code as text, with the description."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.description = description
        return member

    # the form of the record
    NOT_JSON = "not_json", "a line is not JSON, or a value in it is too deep or too long to be read"
    SOURCE_BROKEN = "source_broken", "the file ends early; the rest cannot be read or counted"
    NOT_UTF8 = "not_utf8", "bytes that are not UTF-8"
    NOT_A_RECORD = "not_a_record", "the entry is not a JSON object"
    RECORD_TOO_LARGE = "record_too_large", "one record of more than 32 MiB"
    WRONG_COLUMNS = "wrong_columns", "a row with more or fewer cells than the table has columns"
    BAD_ID = "bad_id", "the id is missing, or neither text nor a whole number"
    DUPLICATE_ID = "duplicate_id", "an earlier record of this source has the same id"
    BAD_IMAGE_FIELD = "bad_image_field", "the image field holds neither an image nor a list of images"
    BAD_CONVERSATIONS = "bad_conversations", "the conversation is not a list of turns with a role and a text each"
    MISSING_FIELD = "missing_field", "a required field is absent or has no value (null, NaN)"
    BAD_FIELD = "bad_field", "a field has a value of the wrong type"
    FIELD_NOT_USED = "field_not_used", "a field that would change the training cannot be used"
    NULL_CHARACTER = "null_character", "a text holds a null character, mostly a sign of a damaged file"
    INVALID_UNICODE = "invalid_unicode", "a text contains half of a surrogate pair, which is not a character"

    # the conversation
    UNKNOWN_ROLE = "unknown_role", "a turn has an unknown role"
    SYSTEM_NOT_FIRST = "system_not_first", "a system turn after the first turn"
    REPEATED_ROLE = "repeated_role", "two turns of the same role in a row"
    STARTS_WITH_ASSISTANT = "starts_with_assistant", "the first turn is the assistant's"
    ENDS_WITH_USER = "ends_with_user", "the last turn is the user's, so there is no answer to it"
    EMPTY_ANSWER = "empty_answer", "an assistant turn without text"
    EMPTY_QUESTION = "empty_question", "a user turn with neither text nor image"
    SPECIAL_TOKEN_IN_TEXT = "special_token_in_text", "a text contains a token of the chat template"
    UNKNOWN_CHARACTER = "unknown_character", "a text contains a character that is not in the vocabulary"
    MISSING_PLACEHOLDER = "missing_placeholder", "a record has images and no placeholder for them"
    TOO_FEW_PLACEHOLDERS = "too_few_placeholders", "fewer placeholders than images"
    TOO_MANY_PLACEHOLDERS = "too_many_placeholders", "more placeholders than images"
    PLACEHOLDER_IN_ANSWER = "placeholder_in_answer", "an image's placeholder in an answer or a system prompt"
    NOTHING_SUPERVISED = "nothing_supervised", "no answer of the record is trained on"
    TOO_LONG = "too_long", "more tokens than --max-tokens; records are never truncated"

    # the images
    IMAGE_NOT_USED = "image_not_used", "a field contains or names an image, but is not used"
    LOOKS_LIKE_IMAGE = "looks_like_image", "a text contains an image tag without an image"
    PICTURE_REMOTE = "picture_remote", "a URL that is not below the image root"
    PATH_OUTSIDE_ROOT = "path_outside_root", "the path is outside the image root, perhaps through a link"
    PICTURE_MISSING = "picture_missing", "there is no file at this path"
    PICTURE_IS_FOLDER = "picture_is_folder", "the path is a folder"
    PICTURE_EMPTY = "picture_empty", "the file has no content"
    PICTURE_UNREADABLE = "picture_unreadable", "the file cannot be opened as an image"
    PICTURE_BROKEN = "picture_broken", "the header is that of an image, but its data are corrupt or truncated"
    PICTURE_TOO_LARGE = "picture_too_large", "more pixels than can be decoded safely"
    PICTURE_16_BIT = "picture_16_bit", "more than 8 bits per channel, which the reference turns almost entirely white"
    PICTURE_ANIMATED = "picture_animated", "several frames or pages, of which the reference sees only the first"
    PICTURE_VECTOR = "picture_vector", "a vector drawing (SVG, PostScript), which has no pixels"
    PICTURE_DICOM = "picture_dicom", "a DICOM file, for which somebody has to choose a window"
    PICTURE_IS_HTML = "picture_is_html", "a web page in place of an image: the download failed"
    GIT_LFS_POINTER = "git_lfs_pointer", "a Git LFS pointer in place of the image"
    NEEDS_EXTRA = "needs_extra", "a file that needs an optional package, which is not installed"
    DOCUMENT_ENCRYPTED = "document_encrypted", "a PDF with a password"
    PAGE_OUT_OF_RANGE = "page_out_of_range", "the document has no such page"
    TOO_MANY_PAGES = "too_many_pages", "more pages in one record than can be trained"
    IN_EXCLUDED_SET = "in_excluded_set", "an image of the record is in a set passed as --exclude"
    NO_LAYOUT = "no_layout", "the image is too thin to be resized at this hd_num"


class RecordError(IxtuneError):
    """A record that cannot be accepted.

    Args:
        reason: The reason code.
        found: What was found, in one line.
        where: The image it was found in, if it was in one.
        hint: How to fix it, in one line.
    """

    def __init__(self, reason: Reason, found: str, *, where: str | None = None, hint: str) -> None:
        super().__init__(found, where=where, hint=hint)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Reject:
    """A rejected record, with the reason and a hint.

    Attributes:
        source: The file it was read from.
        place: Position in that file; None if the file itself is the record.
        record: Its number among the entries of the source, counted from 1.
        id: Its id, if it has one.
        reason: The reason code.
        found: What was found, in one line.
        hint: How to fix it, in one line.
    """

    source: str
    place: Place | None
    record: int
    id: str | None
    reason: Reason
    found: str
    hint: str

    @property
    def where(self) -> str:
        """Return the file, and the position in it."""
        return self.source if self.place is None else f"{self.source}, {self.place}"

    def row(self) -> bytes:
        """Return the line of rejects.jsonl, UTF-8 with its newline."""
        place: dict[str, int | str] = {} if self.place is None else {self.place.unit: self.place.at}
        fields = {
            "source": self.source,
            **place,
            "record": self.record,
            "id": self.id,
            "reason": self.reason.value,
            "found": self.found,
            "mend": self.hint,
        }
        # half a surrogate pair has no UTF-8; its backslash form is what JSON itself would write
        return (json.dumps(fields, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
