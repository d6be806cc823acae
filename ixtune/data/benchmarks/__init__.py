"""Read the published files of public benchmarks as questions with images and reference answers.

    items = read("docvqa", Path("val_v1.0_withQT.json"), images=Path("evaluation/pictures"))

Nothing is downloaded. An entry that cannot be asked or scored becomes a reject, as in `ixtune prepare`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ixtune.data.benchmarks import json_forms, mmbench, own_form
from ixtune.data.benchmarks.benchmark_reader import read_items
from ixtune.data.benchmarks.item import Item, ItemDraft, Items
from ixtune.data.containers.json_text import line_entries, list_entries
from ixtune.data.sources.entry import Entry
from ixtune.errors import IxtuneError, UsageError, choice

__all__ = ["BENCHMARKS", "Benchmark", "Item", "Items", "read"]

_ONE_WORD = "Answer the question using a single word or phrase. {question}"
_BY_LETTER = "{question}\nPlease select the correct answer from the options above."


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One benchmark: its file format and how it is usually evaluated.

    Attributes:
        name: Name on the command line.
        title: Heading in tables.
        file: Short description of the file to read.
        scores: Names of the metrics, the benchmark's official one first.
        prompt: The usual prompt, with `{question}` for the question. VLMEvalKit's for this model, except for MMBench:
            there it writes options and hint in its own wording and begins the answer with "The answer is".
        hd_num: The value with which VLMEvalKit evaluates this model; None if it sets none.
        source: Address at which the file and its description are published.
        entries: Function that reads the entries of the file.
        draft: Function that converts the fields of an entry to a draft.
    """

    name: str
    title: str
    file: str
    scores: tuple[str, ...]
    prompt: str
    hd_num: int | None
    source: str
    entries: Callable[[Path], Iterator[Entry]]
    draft: Callable[[Mapping[str, Any], Entry], ItemDraft]


BENCHMARKS = {
    one.name: one
    for one in (
        Benchmark(
            name="docvqa",
            title="DocVQA",
            file="val_v1.0_withQT.json",
            scores=("anls", "exact_match"),
            prompt=_ONE_WORD,
            hd_num=55,  # 65 for the test set, whose answers are not public
            source="https://rrc.cvc.uab.es/?ch=17, task 1 (Mathew et al., WACV 2021)",
            entries=json_forms.data_entries,
            draft=json_forms.docvqa,
        ),
        Benchmark(
            name="infographicvqa",
            title="InfographicVQA",
            file="infographicsVQA_val_v1.0_withQT.json",
            scores=("anls", "exact_match"),
            prompt=_ONE_WORD,
            hd_num=55,
            source="https://rrc.cvc.uab.es/?ch=17, task 3 (Mathew et al., WACV 2022)",
            entries=json_forms.data_entries,
            draft=json_forms.infographicvqa,
        ),
        Benchmark(
            name="chartqa",
            title="ChartQA",
            file="test_human.json, test_augmented.json, or the folder of both",
            scores=("relaxed_accuracy", "exact_match"),
            prompt=_ONE_WORD,
            hd_num=25,
            source="https://github.com/vis-nlp/ChartQA (Masry et al., ACL Findings 2022)",
            entries=json_forms.chartqa_entries,
            draft=json_forms.chartqa,
        ),
        Benchmark(
            name="textvqa",
            title="TextVQA",
            file="TextVQA_0.5.1_val.json",
            scores=("vqa_accuracy",),
            prompt=_ONE_WORD,
            hd_num=25,
            source="https://textvqa.org/dataset (Singh et al., CVPR 2019)",
            entries=json_forms.data_entries,
            draft=json_forms.textvqa,
        ),
        Benchmark(
            name="ocrbench",
            title="OCRBench",
            file="OCRBench.json",
            scores=("ocrbench",),
            prompt=_ONE_WORD,
            hd_num=55,  # the value written there; its code compares this name in the wrong case, so its runs use 25
            source="https://github.com/Yuliang-Liu/MultimodalOCR (Liu et al., 2023)",
            entries=list_entries,
            draft=json_forms.ocrbench,
        ),
        Benchmark(
            name="mmbench",
            title="MMBench",
            file="MMBench_DEV_EN.tsv",
            scores=("choice_accuracy",),
            prompt=_BY_LETTER,
            hd_num=16,
            source="https://github.com/open-compass/MMBench (Liu et al., ECCV 2024)",
            entries=mmbench.entries,
            draft=mmbench.draft,
        ),
        Benchmark(
            name="questions",
            title="questions",
            file="JSON Lines: question, image, answers",
            scores=("exact_match", "anls"),
            prompt="{question}",
            hd_num=None,
            source="the format of `ixtune predict`, with answers",
            entries=line_entries,
            draft=own_form.draft,
        ),
    )
}


def benchmark_named(name: str) -> Benchmark:
    """Return the benchmark with this name.

    Raises:
        UsageError: There is no such benchmark.
    """
    benchmark = BENCHMARKS.get(name)
    if benchmark is None:
        raise UsageError(f"there is no benchmark {name}", hint=choice(name, BENCHMARKS))
    return benchmark


def read(name: str, path: Path, image_root: Path | None = None, *, images: Path, circular: bool = False) -> Items:
    """Read the questions of a benchmark file.

    Args:
        name: One of `BENCHMARKS`.
        path: The file, or ChartQA's folder.
        image_root: Folder that image paths are relative to and must not leave; None for the folder of the file.
        images: Folder for images that the file contains, created if needed; files are named by content.
        circular: Ask multiple-choice questions once with each rotation of their options (`Item.group` shows which
            belong together, `scores.circular` judges them), not only in the first order.

    Raises:
        UsageError: There is no such benchmark, or no such folder.
        IxtuneError: The file cannot be read, is of another form, or holds no question.
        DataError: No question has an answer to compare with.
    """
    benchmark = benchmark_named(name)
    root = (image_root or (path if path.is_dir() else path.parent)).resolve()
    if not root.is_dir():
        raise UsageError("there is no such folder", where=str(root), hint="pass the folder of the images")
    try:
        return read_items(benchmark.entries(path), benchmark.draft, path, root, images, circular)
    except OSError as error:
        raise IxtuneError(
            f"the benchmark's file cannot be read: {error.strerror or error}",
            where=str(path),
            hint=f"pass the file itself: {benchmark.file}",
        ) from error
