"""Options of an evaluation, checked before anything is loaded and without a tensor library."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ixtune.data.benchmarks import benchmark_named
from ixtune.data.prepared import store
from ixtune.errors import UsageError, choice, require_at_least
from ixtune.evaluation.contenders import require_form
from ixtune.files import refuse_existing
from ixtune.scores import SCORES

QUESTION, USUAL = "{question}", "benchmark"


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """Settings of an evaluation.

    Attributes:
        scores: Names of `SCORES`, the main one first; empty for the usual scores of the data.
        limit: Maximum number of questions.
        batch_size: Questions per batch.
        max_new_tokens: Maximum new tokens per answer; None for enough for the longest reference.
        quantize: `nf4` or `none`; None as each adapter was trained.
        controls: Run the blind control and the majority answer.
        loss: Measure the mean loss of the first references.
        force: Accept another base than an adapter was trained on.
        json_schema: JSON schema that answers follow, from `json_schema.read_schema`; None for free answers.
    """

    scores: tuple[str, ...] = ()
    limit: int | None = None
    batch_size: int = 8
    max_new_tokens: int | None = None
    quantize: str | None = None
    controls: bool = True
    loss: bool = True
    force: bool = False
    json_schema: str | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UsageError: A number is too small, a score is unknown or repeated, or `quantize` is unknown.
        """
        require_form(self.quantize)
        for name in ("limit", "batch_size", "max_new_tokens"):
            require_at_least(name, getattr(self, name), 1)
        for name in self.scores:
            if name not in SCORES:
                raise UsageError(f"there is no score {name}", where="--score", hint=choice(name, SCORES))
        if len(set(self.scores)) < len(self.scores):
            raise UsageError("a score is named twice", where="--score", hint="pass each score once")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSource:
    """Questions of an evaluation.

    Attributes:
        path: A prepared set, or the file of a benchmark.
        benchmark: Name of `BENCHMARKS`; None for a prepared set.
        image_root: Folder that a file's images are relative to; None for its own. Of a prepared set, the folder where
            its images are now; None for where the set says.
        images: Folder for images that are stored inside the file; created if needed.
        hd_num: Maximum crops per image of a file; None as in the training of the first trained model, or as usual.
        prompt: Wording of a file's questions, with `{question}`; `benchmark` for the usual one.
        circular: Ask multiple-choice questions in every order of their options.
    """

    path: Path
    benchmark: str | None = None
    image_root: Path | None = None
    images: Path = Path()
    hd_num: int | None = None
    prompt: str = QUESTION
    circular: bool = False

    def __post_init__(self) -> None:
        """Check that the options fit together.

        Raises:
            UsageError: An option for a file is given with a prepared set, or the prompt has no place for the question.
        """
        of_a_file = {
            "--hd-num": self.hd_num is not None,
            "--prompt": self.prompt != QUESTION,
            "--circular": self.circular,
        }
        given = [option for option, is_given in of_a_file.items() if is_given]
        if self.benchmark is None and given:
            raise UsageError(
                f"{given[0]} needs --benchmark",
                hint=f"add --benchmark NAME, or remove {given[0]}: a prepared set is asked as it was prepared",
            )
        if self.prompt != USUAL and QUESTION not in self.prompt:
            raise UsageError(
                f"the prompt does not contain {QUESTION}",
                where="--prompt",
                hint=f"add {QUESTION}, or pass `{USUAL}` for the usual wording",
            )


def refuse_other_file(out: Path) -> None:
    """Refuse to replace a file that is not an earlier evaluation.

    Raises:
        UsageError: It is a folder.
        IxtuneError: It is another file.
    """
    if out.is_dir():
        raise UsageError("this is a folder", where=str(out), hint=f"name a file: --out {out / 'evaluation.json'}")
    try:
        found = json.loads(out.read_bytes())
    except (OSError, ValueError):
        found = None
    if not (isinstance(found, dict) and {"format", "results", "answers"} <= found.keys()):
        refuse_existing(out)


def require_data(source: EvaluationSource) -> None:
    """Check that the data exist and that the benchmark is known.

    Raises:
        UsageError: It is a file without the name of its benchmark, or the benchmark is unknown.
        IxtuneError: It is not a prepared set.
    """
    if source.benchmark is not None:
        benchmark_named(source.benchmark)
        return
    if source.path.is_file():
        raise UsageError(
            "this is a file, not a prepared set",
            where=str(source.path),
            hint="add --benchmark NAME (`questions` for your own JSON Lines), or pass the folder of a prepared set",
        )
    store.require(source.path)
