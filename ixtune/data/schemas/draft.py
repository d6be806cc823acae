"""The draft that a schema reads from an entry, and its conversion to a record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ixtune.data.record import ImageRef, Record, Turn
from ixtune.data.rejects import Reason, RecordError
from ixtune.data.schemas.image_marks import require_no_mark, take_inline, take_numbered
from ixtune.data.schemas.turns import IMAGE, whole_conversation
from ixtune.data.sources.entry import Entry
from ixtune.data.sources.source import Reading
from ixtune.data.text.conversation_rules import PLACEHOLDER


@dataclass(slots=True)
class Draft:
    """A conversation as read by its schema.

    Attributes:
        id: The record's id.
        images: The images it lists, in the order of the placeholders.
        turns: Turns with our placeholder instead of the source's.
        system: A system prompt outside the turns.
        hd_num: Maximum number of crops per image.
        references: All reference answers.
        written: The source's placeholder, for messages.
        in_front: Images without placeholders go before the first question, by the schema's rule.
        notes: Keys of `record.NOTES`.
    """

    id: str
    images: tuple[ImageRef, ...]
    turns: Sequence[Turn]
    system: str | None = None
    hd_num: int | None = None
    references: tuple[str, ...] = ()
    written: str = IMAGE
    in_front: bool = False
    notes: list[str] = field(default_factory=list)

    def record(self, entry: Entry, reading: Reading) -> Record:
        """Place the images, check for other image marks, and put the system prompt in front.

        Raises:
            RecordError: Placeholders and images differ, a text contains an image tag without an image, or the
                system prompt is in the wrong place.
        """
        turns, images = list(self.turns), self.images
        if any("<img>" in turn.text for turn in turns):
            turns, images, inline = take_inline(turns, images)
            self.notes += ["inline_image"] * bool(inline)
        placed = any(PLACEHOLDER in turn.text for turn in turns)
        if images and not placed:
            turns, images = take_numbered(turns, images)
            if not any(PLACEHOLDER in turn.text for turn in turns):
                turns = self._with_front(turns, len(images), reading)
        elif placed and not images:
            turns = self._without_images(turns, reading)
        if not reading.allow_image_text:
            require_no_mark(self._with_system(turns), images, reading.image_root)
        if not all(turn.learn for turn in turns):
            self.notes.append("turns_not_learned")
        marked = 0 if "image_first" in self.notes else len(images)
        return Record(
            id=self.id,
            images=images,
            turns=whole_conversation(turns, self.system, reading.system, marked, self.written),
            source=entry.file,
            place=entry.place,
            hd_num=self.hd_num,
            references=self.references,
            notes=tuple(self.notes),
        )

    def _with_system(self, turns: list[Turn]) -> list[Turn]:
        return turns if self.system is None else [*turns, Turn("system", self.system)]

    def _without_images(self, turns: list[Turn], reading: Reading) -> list[Turn]:
        """Treat the placeholders of a record without images as text, if the user allows it."""
        asked = sum(turn.text.count(PLACEHOLDER) for turn in turns if turn.role == "user")
        if not reading.allow_image_text or self.written == PLACEHOLDER:
            if not asked:  # only in an answer or a system prompt: the check of all records reports it
                return turns
            raise RecordError(
                Reason.TOO_MANY_PLACEHOLDERS,
                f"{asked} placeholder{'s' * (asked > 1)} for 0 images",
                hint="name the field of the image with --columns image=FIELD, or pass --allow-image-text "
                f"if {self.written} is meant as text",
            )
        return [replace(turn, text=turn.text.replace(PLACEHOLDER, self.written)) for turn in turns]

    def _with_front(self, turns: list[Turn], images: int, reading: Reading) -> list[Turn]:
        """Put placeholders before the first question, if that is the rule."""
        asked = next((at for at, turn in enumerate(turns) if turn.role == "user"), None)
        if asked is None:
            return turns
        if not self.in_front:
            rule = reading.missing_placeholder
            if rule is None and images == 1 and reading.image_first:
                self.notes.append("image_first")
                return turns  # the template does the rest
            if rule == "reject" or (rule is None and images > 1):
                raise RecordError(
                    Reason.MISSING_PLACEHOLDER,
                    f"{images} image{'s' * (images > 1)} but no {self.written}",
                    hint=f"put {self.written} where each image belongs, "
                    "or pass --missing-placeholder front to have them in front of the first question",
                )
            self.notes.append("image_in_front")
        turns[asked] = replace(turns[asked], text=PLACEHOLDER * images + turns[asked].text)
        return turns
