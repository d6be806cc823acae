"""Rules that the chat template sets for a conversation: who speaks after whom, and where images may be."""

from __future__ import annotations

from collections.abc import Sequence

from ixtune.data.record import Turn
from ixtune.data.rejects import Reason, RecordError

PLACEHOLDER = "<ImageHere>"
"""Mark of an image in the text of a turn."""

SIDES = {"assistant": "an answer", "system": "the system prompt"}
"""How messages call the turns that cannot show images."""


class TemplateError(RecordError):
    """The chat template does not accept a conversation."""

    def __init__(self, reason: Reason, found: str, hint: str) -> None:
        super().__init__(reason, found, hint=hint)


def require_alternation(turns: Sequence[Turn]) -> None:
    """Raise unless user and assistant alternate, the user first, and no turn is empty."""
    if not turns:
        raise TemplateError(Reason.BAD_CONVERSATIONS, "there is no turn", "write a question and its answer")
    before: Turn | None = None
    for number, turn in enumerate(turns, start=1):
        if turn.role == "system":
            _require_system_first(turn, number)
            continue
        if before is None and turn.role == "assistant":
            raise TemplateError(
                Reason.STARTS_WITH_ASSISTANT, "the first turn is the assistant's", "begin with a user turn"
            )
        if before is not None and before.role == turn.role:
            raise TemplateError(
                Reason.REPEATED_ROLE,
                f"turns {number - 1} and {number} are both the {turn.role}'s",
                "join them into one turn, or add the turn that is missing between them",
            )
        if not turn.text.strip():
            if turn.role == "assistant":
                raise TemplateError(
                    Reason.EMPTY_ANSWER,
                    f"turn {number}, an answer, is empty",
                    "write the answer or drop the record",
                )
            raise TemplateError(
                Reason.EMPTY_QUESTION,
                f"turn {number}, a question, has neither text nor image",
                f"write the question, or {PLACEHOLDER} if the image alone is the question",
            )
        before = turn


def _require_system_first(turn: Turn, number: int) -> None:
    if number > 1:
        raise TemplateError(
            Reason.SYSTEM_NOT_FIRST,
            f"turn {number} has the role system",
            "put its text into the first turn, or in front of the question it belongs to",
        )
    if not turn.text.strip():
        raise TemplateError(Reason.BAD_CONVERSATIONS, "the system prompt is empty", "write it, or leave it out")


def require_placeholders(turns: Sequence[Turn], images: int, written: str = PLACEHOLDER) -> None:
    """Raise unless the user's turns hold one placeholder for each image, and the others none.

    Args:
        turns: Turns with `<ImageHere>` for each image.
        images: Number of images.
        written: The source's spelling of the placeholder, for error messages.

    Raises:
        TemplateError: Too few, too many, or in the wrong place.
    """
    found = 0
    for number, turn in enumerate(turns, start=1):
        here = turn.text.count(PLACEHOLDER)
        if here and turn.role != "user":
            raise TemplateError(
                Reason.PLACEHOLDER_IN_ANSWER,
                f"turn {number}, {SIDES[turn.role]}, contains {written}",
                "move it to the question: only the user shows images",
            )
        found += here
    if found == 0 < images:
        raise TemplateError(
            Reason.MISSING_PLACEHOLDER,
            f"{_count(images, 'image')} but no {written}",
            f"put {written} where the image belongs, usually in front of the first question",
        )
    if found != images:
        raise TemplateError(
            Reason.TOO_FEW_PLACEHOLDERS if found < images else Reason.TOO_MANY_PLACEHOLDERS,
            f"{_count(found, 'placeholder')} for {_count(images, 'image')}",
            f"write {written} once for each image",
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
