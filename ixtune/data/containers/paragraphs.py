"""Unfold nested questions: SQuAD's articles with paragraphs, each with a context and its questions.

    {"title": ..., "paragraphs": [{"context": ..., "qas": [{"id": ..., "question": ..., "answers": [...]}]}]}

Each question becomes an entry with the fields of its paragraph and its article.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from ixtune.data.containers.json_text import decoded
from ixtune.data.rejects import Reason
from ixtune.data.schemas.fields import shown
from ixtune.data.sources.entry import Entry, Fault

PARAGRAPHS, QUESTIONS = "paragraphs", "qas"


def has_paragraphs(value: Any) -> bool:
    """Return whether a value is an article with paragraphs that hold questions."""
    paragraphs = value.get(PARAGRAPHS) if isinstance(value, Mapping) else None
    if not isinstance(paragraphs, list) or not paragraphs:
        return False
    return isinstance(paragraphs[0], Mapping) and isinstance(paragraphs[0].get(QUESTIONS), list)


def questions_in(read: Callable[[], Iterator[Entry]]) -> Iterator[Entry]:
    """Yield an entry for each question of the articles; what is not an article becomes a fault.

    Args:
        read: Function that yields the articles from the beginning.
    """
    number = 0
    for article in read():
        value, fault = decoded(article)
        found = [replace(article, value=None, line=None, fault=fault)] if fault else list(_of_article(article, value))
        for entry in found:
            number += 1
            yield replace(entry, number=number)


def _of_article(entry: Entry, value: Any) -> Iterator[Entry]:
    paragraphs = value.get(PARAGRAPHS) if isinstance(value, Mapping) else None
    if not isinstance(paragraphs, list):
        yield _faulty(entry, f"the article is {shown(value)}, without a list of `{PARAGRAPHS}`")
        return
    shared = {name: one for name, one in value.items() if name != PARAGRAPHS}
    for paragraph in paragraphs:
        asked = paragraph.get(QUESTIONS) if isinstance(paragraph, Mapping) else None
        if not isinstance(asked, list):
            yield _faulty(entry, f"a paragraph is {shown(paragraph)}, without a list of `{QUESTIONS}`")
            continue
        around = shared | {name: one for name, one in paragraph.items() if name != QUESTIONS}
        for one in asked:
            if isinstance(one, Mapping):
                yield replace(entry, value={**around, **one}, line=None)
            else:
                yield _faulty(entry, f"an element of `{QUESTIONS}` is {shown(one)}")


def _faulty(entry: Entry, found: str) -> Entry:
    hint = 'write {"paragraphs": [{"context": ..., "qas": [{"question": ..., "answers": [...]}]}]}'
    return replace(entry, value=None, line=None, fault=Fault(Reason.NOT_A_RECORD, found, hint))
