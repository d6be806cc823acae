"""Measures what the nano base can read, on pages it has not met, and writes its card.

    python examples/nano-base/measure.py BASE [--questions 300]

Pages come from the generator that trained it, with other seeds, in fonts it was trained on and in two families that
were kept out. Greedy answers, exact match.
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

from ixtune.answering.answerer import Answerer, answer_all
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

# name: (what is asked, kind of question, whether on one crop of plain lines or on forms and tables of several crops)
KINDS = {
    "line": ("what stands behind a word on its line, one crop", "field", True),
    "after": ("the two words after a word, one crop", "after", True),
    "form": ("the value of a named field, forms of one to four crops", "field", False),
    "cell": ("a table's cell by row and column, one to four crops", "cell", False),
}
GRIDS = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1))
# (boxed print, unseen fonts)
COLUMNS = ((True, False), (True, True), (False, False))


def questions(name: str, boxed: bool, unseen: bool, count: int) -> tuple[list[Prompt], list[str], dict[str, Any]]:
    """`count` questions of one kind, one a page, over all grids in turn: prompts, answers, crops by page."""
    rng, files = random.Random(f"card {name} {boxed} {unseen}"), fonts.find(unseen)
    _, kind, lines = KINDS[name]
    pitch = float(pages.CELL) if boxed else None
    prompts: list[Prompt] = []
    answers, crops = [], {}
    while len(prompts) < count:
        grid = (1, 1) if lines else GRIDS[len(prompts) % len(GRIDS)]
        page = pages.easy_page(rng, files, pitch) if lines else pages.question_page(rng, grid, files, pitch)
        fitting = [(q, a) for q, a, k in page.questions if k == kind]
        if not fitting:
            continue
        question, answer = rng.choice(fitting)
        layout = plan(page.image.width, page.image.height, grid[0] * grid[1])
        key = str(len(prompts))
        crops[key] = (torch.from_numpy(cut(place(page.image, layout))), (layout.rows, layout.cols))
        prompts.append(Prompt((Turn("user", "<ImageHere>" + question),), ({"path": key, "tokens": layout.tokens},)))
        answers.append(answer)
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
    """Exact match by kind, by boxed or running print, and by whether the fonts were unseen."""
    model, _ = load_base(base, quantize=quantize, dtype=torch.bfloat16)
    tokenizer = Tokenizer.from_base(base)
    found = {}
    for name in KINDS:
        for boxed, unseen in COLUMNS[1:2] if quantize else COLUMNS:
            prompts, references, crops = questions(name, boxed, unseen, count)

            said = answer_all(Answerer(model, tokenizer, Pages(crops), Settings(24)), prompts, 12)
            answers = [answer.text for answer in said]
            parts = [exact_match(Case(a, (r,))) for a, r in zip(answers, references, strict=True)]
            found[name, boxed, unseen] = interval(parts, range(len(prompts)))
            print(name, boxed, unseen, found[name, boxed, unseen], answers[:4], references[:4])
    return found


def card(
    base: Path,
    found: dict[tuple[str, bool, bool], Interval],
    in_nf4: dict[tuple[str, bool, bool], Interval],
    count: int,
) -> str:
    """The card as Markdown."""
    rows = []
    for name, (text, _, _) in KINDS.items():
        cells = [found[name, *column] for column in COLUMNS]
        rows.append(f"| {text} | {cells[0]} | {cells[1]} | {in_nf4[name, *COLUMNS[1]]} | {cells[2]} |")
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

It exists so that the whole job runs on a laptop. It knows no language, no world and no images other than print.

## What it can read

*Boxed* print has one character to a box of 28 pixels, as on official forms; *running* print is set as usual, 12 to 42
pixels high. Exact match of greedy answers, {count} questions a cell, one a page, pages never trained on; 95 %
intervals.

| asked for | boxed, trained fonts | boxed, unseen fonts (Carlito, Tinos) | the same, in NF4 | running, trained fonts |
|---|---|---|---|---|
{chr(10).join(rows)}

## What it cannot

As the last column says, hardly any running print; nor handwriting, drawings, charts, photographs, languages,
arithmetic, more than one image, long answers. Questions in words it was not trained on give nothing useful before
fine-tuning.

## Files

| file | bytes | sha256 |
|---|---|---|
{chr(10).join(hashes)}
"""


def main() -> None:
    """Measure and write BASE/README.md."""
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
