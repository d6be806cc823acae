"""Measure what the nano base reads, on pages not trained on, and write its card.

    python examples/nano-base/measure.py BASE [--questions 300]

Pages come from the generator that trained it, at full difficulty and with other seeds, in fonts it was trained on and
in the families held out. Greedy answers, exact match.
"""

from __future__ import annotations

import argparse
import hashlib
import random
from pathlib import Path
from typing import Any

import fonts
import pages
import torch

from ixtune.answering.answerer import Answerer
from ixtune.answering.prompt import Prompt
from ixtune.answering.settings import Settings
from ixtune.data.images.pixels import crops as cut
from ixtune.data.images.pixels import place
from ixtune.data.record import Turn
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.layout import plan
from ixtune.model.loading import load_base
from ixtune.scores.case import Case
from ixtune.scores.intervals import Interval, interval
from ixtune.scores.text import exact_match

# kind of question: (description, how its pages are drawn)
KINDS: dict[str, tuple[str, pages.Draw]] = {
    "field": ("value of a named field", pages.form_page),
    "cell": ("table cell by row and column", pages.table_page),
    "after": ("up to three words after a given word", pages.lines_page),
    "json": ("up to three fields as JSON", pages.form_page),
}
GRIDS = ((1, 1), (1, 2), (2, 1), (2, 2))
# (boxed print, unseen fonts)
COLUMNS = ((False, False), (False, True), (True, True))


def questions(kind: str, boxed: bool, unseen: bool, count: int) -> tuple[list[Prompt], list[str], dict[str, Any]]:
    """Return prompts, answers and crops (by page) of `count` questions of one kind: one a page, grids in turn."""
    rng, files = random.Random(f"card {kind} {boxed} {unseen}"), fonts.find(unseen)
    draw = pages.boxed_page if boxed else KINDS[kind][1]
    prompts: list[Prompt] = []
    answers, crops = [], {}
    while len(prompts) < count:
        rows, cols = GRIDS[len(prompts) % len(GRIDS)]
        width, height = (int(336 * n * rng.uniform(0.95, 1.0)) for n in (cols, rows))
        page = draw(rng, width, height, files, pages.Difficulty(1.0))
        layout = plan(width, height, rows * cols)
        fitting = [question for question in page.questions if question.kind == kind]
        if not fitting or (layout.rows, layout.cols) != (rows, cols):
            continue
        question = rng.choice(fitting)
        key = str(len(prompts))
        crops[key] = (torch.from_numpy(cut(place(page.image, layout))), (rows, cols))
        prompts.append(
            Prompt((Turn("user", "<ImageHere>" + question.text),), ({"path": key, "tokens": layout.tokens},))
        )
        answers.append(question.answer)
    return prompts, answers, crops


class Pages:
    """Drawn pages as the answerer reads images; made for each set of questions."""

    def __init__(self, crops: dict[str, Any]) -> None:
        self.crops = crops

    def of(self, records: Any) -> dict[str, Any]:
        """Return the crops and grids of the records' pages."""
        parts = [self.crops[image["path"]] for record in records for image in record["pictures"]]
        return {"crops": torch.cat([part for part, _ in parts]), "grids": [grid for _, grid in parts]}

    def key(self, stored: Any) -> str:
        """Return the page's name."""
        return str(stored["path"])


def measure(base: Path, count: int, quantize: bool) -> dict[tuple[str, bool, bool], Interval]:
    """Return exact match by kind, boxed or running print, and unseen or trained fonts.

    With `quantize`, the base is in NF4 and only running print in unseen fonts is measured.
    """
    model, _ = load_base(base, quantize=quantize, dtype=torch.bfloat16)
    tokenizer = Tokenizer.from_base(base)
    found = {}
    for kind in KINDS:
        for boxed, unseen in COLUMNS[1:2] if quantize else COLUMNS:
            if boxed and kind != "field":
                continue
            prompts, references, crops = questions(kind, boxed, unseen, count)
            longest = max(len(reference) for reference in references) + 8
            answerer = Answerer(model, tokenizer, Pages(crops), Settings(longest))
            answers = [""] * len(prompts)
            for chosen in answerer.batches(prompts, 12):
                said = answerer.answer([prompts[index] for index in chosen])
                for index, answer in zip(chosen, said, strict=True):
                    answers[index] = answer.text
            parts = [exact_match(Case(a, (r,))) for a, r in zip(answers, references, strict=True)]
            found[kind, boxed, unseen] = interval(parts, range(len(prompts)))
            print(kind, boxed, unseen, found[kind, boxed, unseen], answers[:4], references[:4], flush=True)
    return found


def card(
    base: Path,
    found: dict[tuple[str, bool, bool], Interval],
    in_nf4: dict[tuple[str, bool, bool], Interval],
    count: int,
) -> str:
    """Return the card as Markdown."""
    rows = []
    for kind, (text, _) in KINDS.items():
        cells = [str(found.get((kind, *column), "")) for column in COLUMNS]
        rows.append(f"| {text} | {cells[0]} | {cells[1]} | {in_nf4[kind, *COLUMNS[1]]} | {cells[2]} |")
    hashes = [
        f"| `{path.name}` | {path.stat().st_size:,} | `{hashlib.sha256(path.read_bytes()).hexdigest()}` |"
        for path in sorted(base.iterdir())
        if path.suffix in (".safetensors", ".model")
    ]
    size = sum(path.stat().st_size for path in base.iterdir() if path.is_file()) / 1e6
    return f"""---
license: apache-2.0
---
# The nano base

A tiny checkpoint of the InternLM-XComposer2-4KHD architecture, every part of it: CLIP-style vision tower at 336/14
(5 layers x 128), 2x2 merge, newline and separator tokens, projector, grouped-query decoder with fused wqkv (4 layers x
192, 4 heads, 2 key/value heads), PLoRA beside its linears. {size:.1f} MB in bfloat16, in the original checkpoint form.
Its vocabulary has one piece a character. It was trained from nothing, on generated pages of print only, by
`examples/nano-base/train.py`; the measurements below are by `measure.py` beside it.

It exists so that the whole job runs on a laptop. It knows no language, no world and no pictures other than print.

## What it reads

Running print with font sizes of 12 to 34 pixels in the image the model gets, lines at least 28 pixels apart (one image
token), upright faces, light blur and grain; and boxed print, one character to a box of 28 pixels. Pages of one to four
crops. Exact match of greedy answers, {count} questions a cell, one a page, pages not trained on; 95 % intervals. The
unseen fonts are Carlito, EB Garamond and Inconsolata.

| asked for | running, trained fonts | running, unseen fonts | the same, in NF4 | boxed, unseen fonts |
|---|---|---|---|---|
{chr(10).join(rows)}

## What it does not read

Italics, condensed and light faces, print set closer than 28 pixels, handwriting, drawings, charts, photographs. It has
not learned languages, arithmetic, several images or long answers. Before fine-tuning, questions in words that it was
not trained on give nothing useful.

## Files

| file | bytes | sha256 |
|---|---|---|
{chr(10).join(hashes)}
"""


def main() -> None:
    """Measure the base and write BASE/README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("--questions", type=int, default=60, help="questions of each kind and font set")
    parser.add_argument("--dry", action="store_true", help="print only")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(chosen.base, chosen.questions, quantize=False)
    if chosen.dry:
        return
    text = card(chosen.base, found, measure(chosen.base, chosen.questions, quantize=True), chosen.questions)
    (chosen.base / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
