"""One training run, from a recipe to an adapter folder."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import set_seed

import ixtune
from ixtune.adapter import bundle
from ixtune.checkpoint.terms import terms_of
from ixtune.data.text.template import TEMPLATE_VERSION
from ixtune.planning.plan import Plan, flops_of
from ixtune.planning.plan_inputs import sizes_of
from ixtune.planning.record_shapes import RecordShapes
from ixtune.recipe.recipe import Recipe
from ixtune.scores import SCORES
from ixtune.training import run_plan
from ixtune.training.assembly import Network, assemble, build, images_of
from ixtune.training.callbacks import GracefulStop, Journal, Rehearsal, Samples, Validation
from ixtune.training.dry_run import dry_run
from ixtune.training.inputs import Inputs, images_as_trained, open_inputs
from ixtune.training.monitoring import answers, metrics, scoring, trackers
from ixtune.training.monitoring.validation import LOSS
from ixtune.training.monitoring.view import View, view_on
from ixtune.training.processes import parallel
from ixtune.training.state import checkpoints, resume
from ixtune.training.state.lock import only_run_in
from ixtune.training.trainer import AdapterTrainer

_VERSIONS = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        adapter: Its folder, or None where the run was stopped before the end.
        checkpoint: The last one, where it was stopped.
        steps: Optimizer steps taken.
        adapter_step: The step that the adapter is of: the best on the validation set, or the last.
        validation_loss: Of that step, where there is a validation set.
        validation_scores: Of that step, by name, where the recipe asks for some.
        best_by: What that step is the best by, `loss` or the name of a score; None without a validation set.
    """

    adapter: Path | None
    checkpoint: Path | None
    steps: int
    adapter_step: int
    validation_loss: float | None = None
    validation_scores: Mapping[str, float] = field(default_factory=dict)
    best_by: str | None = None

    @property
    def best(self) -> str | None:
        """What was measured of the adapter on the validation set, in words; what it is the best by stands first."""
        if self.best_by is None:
            return None
        shown = {LOSS: f"loss {self.validation_loss:.4f}"}
        shown |= {name: f"{SCORES[name].title} {value:.4f}" for name, value in self.validation_scores.items()}
        return ", ".join([shown.pop(self.best_by), *shown.values()])


def train(recipe: Recipe, console: Console, *, must_resume: bool = False, only_try: bool = False) -> Outcome | None:
    """Train as the recipe says.

    Args:
        recipe: the whole description of the run.
        console: where the reader's lines go.
        must_resume: there has to be an unfinished run in `recipe.output`, which is continued.
        only_try: load and take one step on the largest pack; nothing is written, the run folder is not looked at.

    Returns:
        How it ended; None where `resume: auto` finds the run finished already, or where it was only tried.

    Raises:
        IxtuneError: the data, the base or the run folder do not fit; nothing was started, or the state so far is kept.
    """
    parallel.join()
    with parallel.lost_peers():
        view = view_on(console, recipe.training.best_by)
        trackers.require(recipe.training.report_to)
        if only_try:
            inputs = _open(recipe)
            dry_run(recipe, inputs, run_plan.plan_run(recipe, inputs, view.say), view.say)
            return None
        if must_resume:
            resume.require_run(recipe.output)
        elif recipe.resume == "auto" and resume.is_finished(recipe.output):
            view.say(f"finished already: the adapter is in {recipe.output / 'adapter'}")
            return None
        inputs = _open(recipe)
        with only_run_in(recipe.output) if parallel.is_first() else nullcontext():
            return _train(recipe, inputs, view, resuming=must_resume or recipe.resume == "auto")


def _open(recipe: Recipe) -> Inputs:
    inputs, training = open_inputs(recipe), recipe.training
    if inputs.validation is not None:
        asked = answers.draw(len(inputs.validation), training.score_records, training.seed)
        scoring.require_judgeable(inputs.validation, asked, training.scores)
    return inputs


def _train(recipe: Recipe, inputs: Inputs, view: View, *, resuming: bool) -> Outcome:
    run = recipe.output

    def begin() -> Path | None:
        if resuming and resume.is_begun(run):
            return resume.resume_point(recipe, inputs.hashes, run, view.say)
        checkpoints.require_empty(run)
        return None

    start = parallel.from_first(begin)
    plan = run_plan.plan_run(recipe, inputs, view.say)
    levers = plan.levers if start is None else run_plan.kept_levers(run)
    set_seed(recipe.training.seed)
    network = build(recipe, inputs, levers, view.say)
    if parallel.is_first():
        if start is None:
            run_plan.keep(plan, run)
        resume.write_start(run, recipe, inputs.hashes)
    trackers.prepare(recipe.training.report_to, run)
    trainer = assemble(recipe, inputs, network, run)
    trainer.measure_by(flops_of(plan, RecordShapes.of(inputs.train)), run_plan.flops_per_s(plan))
    if start is not None:
        trainer.progress.restore(start)
    stop = _add_callbacks(trainer, inputs, network, plan, view)
    if start is not None and (resume.is_last(start) or trainer.progress.stopped_early):
        trainer._load_from_checkpoint(str(start))  # only the adapter folder was still to be written
        trainer.state.global_step = trainer.state.max_steps = checkpoints.step_of(start)
    else:
        with view:
            trainer.train(resume_from_checkpoint=str(start) if start else None)
    steps, progress = trainer.state.global_step, trainer.progress
    if stop.asked and steps < trainer.state.max_steps and not progress.stopped_early:
        return Outcome(None, run / f"{checkpoints.PREFIX}{steps}", steps, steps)
    if not progress.reproducible:
        view.say("memory ran out on the way, and packs were cut: this run cannot be repeated bit by bit")
    step = _take_best(trainer, view)
    if parallel.is_first():
        bundle.save(network.wrapped, run / "adapter", _record(recipe, inputs, trainer, step))
    return Outcome(run / "adapter", None, steps, step, **_measured(trainer, step))


def _add_callbacks(trainer: AdapterTrainer, inputs: Inputs, network: Network, plan: Plan, view: View) -> GracefulStop:
    """What happens before and between the steps, in the order in which it happens each time."""
    trainer.add_callback(Rehearsal(trainer, inputs.packs[plan.need.worst], plan, view))
    if parallel.is_first():
        trainer.add_callback(Journal(trainer, view))
    if inputs.validation is not None:
        images = images_of(trainer.recipe, inputs.validation.files, network)
        trainer.add_callback(Validation(trainer, inputs, images, view))
        if trainer.recipe.training.sample_every:
            trainer.add_callback(Samples(trainer, inputs, images, view))
    stop = GracefulStop(view, trainer.progress)
    trainer.add_callback(stop)
    return stop


def _take_best(trainer: AdapterTrainer, view: View) -> int:
    """Put the weights of the best step on the validation set into the model: which step that is."""
    last, best = trainer.state.global_step, trainer.progress.best_step
    if best is None or best == last:
        return last
    folder = trainer.run_folder / f"{checkpoints.PREFIX}{best}"
    if problem := checkpoints.damage(folder):
        view.say(f"the best checkpoint cannot be used, so the adapter is of the last step: {folder}: {problem}")
        return last
    trainer._load_from_checkpoint(str(folder))
    return best


def _record(recipe: Recipe, inputs: Inputs, trainer: AdapterTrainer, step: int) -> dict[str, Any]:
    """What `ixtune.json` says of an adapter."""
    progress = trainer.progress
    return {
        "format": 1,
        "ixtune_version": ixtune.__version__,
        "base": recipe.base,
        "base_identity": inputs.hashes["base_identity"],
        "terms": terms_of(inputs.base, sizes_of(inputs.base)),
        "quantize": recipe.adapter.quantize,
        "template_version": TEMPLATE_VERSION,
        "tokenizer_sha256": inputs.tokenizer.sha256,
        **images_as_trained(inputs.train.manifests),
        "data": {
            "records": len(inputs.train),
            "manifest_sha256": inputs.hashes["train_manifest_sha256"],
        },
        "steps": step,
        "trained_steps": trainer.state.global_step,
        "tokens": progress.tokens,
        "loss": metrics.last_loss(trainer.run_folder / metrics.FILE),
        **_measured(trainer, step),
        "reproducible": progress.reproducible,
        "recipe": recipe.model_dump(mode="json"),
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
    }


def _measured(trainer: AdapterTrainer, step: int) -> dict[str, Any]:
    """What is known of a step on the validation set, and by what it is the best; only of the best one."""
    progress = trainer.progress
    if step != progress.best_step:
        return {"validation_loss": None, "validation_scores": {}, "best_by": None}
    by = trainer.recipe.training.best_by
    return {"validation_loss": progress.best_loss, "validation_scores": progress.best_scores, "best_by": by}
