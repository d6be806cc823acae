"""Read ixtune's own benchmark format: JSON Lines, one question per line.

    {"question": "What is the total?", "image": "a.png", "answers": ["12.50", "$12.50"], "kind": "amount"}

`image` or `images` (paths, or data: URLs), `answer`, `answers` or `references` (one or a list), and optionally
`options` (letter -> text, which are written under the question), `id` and `kind`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ixtune.data.benchmarks.item import ItemDraft
from ixtune.data.benchmarks.mmbench import letters_of, options_of
from ixtune.data.benchmarks.values import kind_in, question_in, references_in
from ixtune.data.schemas.conversation import take_images
from ixtune.data.schemas.fields import is_missing, record_id
from ixtune.data.sources.entry import Entry


def draft(fields: Mapping[str, Any], entry: Entry) -> ItemDraft:
    """Convert a line to a draft."""
    references = references_in(fields, "answers", "answer", "references")
    options = {} if is_missing(fields.get("options")) else options_of(fields["options"])
    return ItemDraft(
        record_id(fields, entry),
        question_in(fields),
        letters_of(references, options) if options else references,
        images=tuple(one.content or (one.path or one.name,) for one in take_images(dict(fields), ("image", "images"))),
        options=options,
        kind=kind_in(fields, "kind"),
    )
