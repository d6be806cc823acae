"""What an evaluation is asked for: checked before anything is loaded, without any tensor library."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ixtune.data.benchmarks import benchmark_named
from ixtune.data.prepared import store
from ixtune.errors import UsageError, choice
from ixtune.evaluation.contenders import require_form
from ixtune.scores import SCORES

QUESTION, USUAL = "{question}", "benchmark"


@dataclass(frozen=True, slots=True)
class Options:
    """How an evaluation is made.

    Attributes:
        scores: Names of `SCORES`, the main one first; empty for what the data are usually scored by.
        limit: Only the first so many questions.
        batch_size: Questions answered at a time.
        max_new_tokens: Longest answer; None for what the longest reference needs and some more.
        quantize: `nf4` or `none`; None as each adapter was trained.
        controls: Also the blind control and the majority answer.
        force: Accept another base than an adapter was trained on.
    """

    scores: tuple[str, ...] = ()
    limit: int | None = None
    batch_size: int = 8
    max_new_tokens: int | None = None
    quantize: str | None = None
    controls: bool = True
    force: bool = False

    def __post_init__(self) -> None:
        """Refuse what is no score, and no form of a base.

        Raises:
            UsageError: a score is unknown, or named twice, or `quantize` is something else.
        """
        require_form(self.quantize)
        for name in self.scores:
            if name not in SCORES:
                raise UsageError(f"there is no score {name}", where="--score", hint=choice(name, SCORES))
        if len(set(self.scores)) < len(self.scores):
            raise UsageError("a score is named twice", where="--score", hint="name it once")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is asked.

    Attributes:
        path: A prepared set, or the file of a benchmark.
        benchmark: Name of `BENCHMARKS`; None for a prepared set.
        image_root: What a file's images are relative to; None for its folder.
        images: A folder for images that a file carries itself; made if it is needed.
        hd_num: Most crops of a file's images; None as the first model that was trained saw them, or as the benchmark.
        prompt: How a question of a file is put, with `{question}`; `benchmark` for the wording usual there.
        circular: Ask questions of multiple choice in every order of their options.
    """

    path: Path
    benchmark: str | None = None
    image_root: Path | None = None
    images: Path = Path()
    hd_num: int | None = None
    prompt: str = QUESTION
    circular: bool = False

    def __post_init__(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            UsageError: an option for a file is given with a prepared set, or the prompt has no place for the question.
        """
        of_a_file = {
            "--image-root": self.image_root is not None,
            "--hd-num": self.hd_num is not None,
            "--prompt": self.prompt != QUESTION,
            "--circular": self.circular,
        }
        given = [option for option, is_given in of_a_file.items() if is_given]
        if self.benchmark is None and given:
            raise UsageError(
                f"{given[0]} is for the file of a benchmark",
                hint="give --benchmark with its name, or leave it out: a prepared set is asked as it was prepared",
            )
        if self.prompt != USUAL and QUESTION not in self.prompt:
            raise UsageError(
                f"the prompt does not say where the {QUESTION} stands",
                where="--prompt",
                hint=f"write {QUESTION} into it, or give `{USUAL}` for the wording usual there",
            )


def require_data(source: Source) -> None:
    """Refuse data that are none, by their files and by the name of the benchmark.

    Raises:
        UsageError: It is a file without the name of its benchmark, or there is no benchmark of that name.
        IxtuneError: It is no prepared set.
    """
    if source.benchmark is not None:
        benchmark_named(source.benchmark)
        return
    if source.path.is_file():
        raise UsageError(
            "this is a file, not a prepared set",
            where=str(source.path),
            hint="say whose with --benchmark: `questions` for JSON Lines of your own; or give the folder of a set",
        )
    store.require(source.path)
