"""Run a training, from a recipe to an adapter folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from transformers import TrainerState, set_seed

from ixtune.adapter import bundle
from ixtune.errors import describe
from ixtune.planning.plan import Plan, flops_of
from ixtune.planning.record_shapes import RecordShapes
from ixtune.recipe.recipe import Recipe
from ixtune.scores import SCORES
from ixtune.training import adapter_record, run_plan
from ixtune.training.assembly import Network, assemble, build, images_of
from ixtune.training.callbacks import GracefulStop, Journal, Rehearsal
from ixtune.training.dry_run import dry_run
from ixtune.training.failure import RunFailedError
from ixtune.training.inputs import Inputs, check_images, open_inputs
from ixtune.training.measurements import Samples, Validation, catch_up
from ixtune.training.monitoring import answers, scoring, trackers
from ixtune.training.monitoring.validation import LOSS
from ixtune.training.monitoring.view import TrainingView, view_on
from ixtune.training.processes import parallel
from ixtune.training.processes.launch import LostPeerError
from ixtune.training.state import checkpoints, disk, extension, resume
from ixtune.training.state.lock import only_run_in
from ixtune.training.state.resume import Start
from ixtune.training.stopping import StopRequest, StopRequested
from ixtune.training.trainer import AdapterTrainer


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """Result of a run.

    Attributes:
        adapter: The adapter's folder, or None if the run was stopped before the end.
        checkpoint: The last checkpoint, if the run was stopped.
        steps: Optimizer steps taken.
        adapter_step: Step of the adapter: the best on the validation set, or the last.
        validation_loss: Validation loss at that step, if there is a validation set.
        validation_scores: Scores at that step by name, if the recipe lists any.
        best_by: Measurement that selected that step, `loss` or the name of a score; None without a validation set.
        stopped_by: Number of the signal that ended the run before its last step; None if it is finished.
    """

    adapter: Path | None
    checkpoint: Path | None
    steps: int
    adapter_step: int
    validation_loss: float | None = None
    validation_scores: Mapping[str, float] = field(default_factory=dict)
    best_by: str | None = None
    stopped_by: int | None = None

    @property
    def best(self) -> str | None:
        """Return the measurements of the adapter on the validation set as text, that of `best_by` first."""
        if self.best_by is None:
            return None
        shown = {LOSS: f"loss {self.validation_loss:.4f}"}
        shown |= {name: f"{SCORES[name].title} {value:.4f}" for name, value in self.validation_scores.items()}
        return ", ".join([shown.pop(self.best_by), *shown.values()])


def train(
    recipe: Recipe,
    console: Console | None = None,
    *,
    must_resume: bool = False,
    only_try: bool = False,
    grace_s: float | None = None,
) -> RunOutcome | None:
    """Train an adapter.

    SIGINT, SIGTERM, SIGUSR1, and SIGHUP unless it is ignored, end the run with a checkpoint, if this is called in the
    main thread.

    Args:
        recipe: The complete description of the run.
        console: Where progress is shown. Default: standard output.
        must_resume: Require an unfinished run in `recipe.output`, and continue it.
        only_try: Load the model and take one step on the largest pack; write nothing and ignore the run folder.
        grace_s: Seconds after a signal in which the current step may finish; then it is abandoned, and the checkpoint
            is that of the step before. None for no limit.

    Returns:
        Result of the run; None if `resume: auto` finds it finished already, or after a dry run.

    Raises:
        IxtuneError: Data, base or run folder do not fit; nothing was started.
        RunFailedError: Training ended by an error; it names the checkpoint.
    """
    view = view_on(console or Console(highlight=False), recipe.training.best_by)
    try:
        with StopRequest(view.warn, grace_s) as stop:
            parallel.join()
            with parallel.lost_peers():
                return _start(recipe, view, stop, must_resume=must_resume, only_try=only_try)
    except StopRequested as stopped:
        return _stopped(recipe.output, stopped.number)


def _start(
    recipe: Recipe, view: TrainingView, stop: StopRequest, *, must_resume: bool, only_try: bool
) -> RunOutcome | None:
    trackers.require(recipe.training.report_to)
    if only_try:
        inputs = _open(recipe)
        dry_run(recipe, inputs, run_plan.plan_run(recipe, inputs, view.say), view.say)
        return None
    extends = recipe.resume == "extend" and resume.is_begun(recipe.output) and resume.is_longer(recipe, recipe.output)
    if must_resume and not extends:
        resume.require_run(recipe.output)
    elif recipe.resume != "never" and resume.is_finished(recipe.output) and not extends:
        resume.require_same_recipe(recipe, recipe.output)
        view.say(f"finished already: the adapter is in {recipe.output / 'adapter'}")
        return None
    inputs = _open(recipe)
    with only_run_in(recipe.output) if parallel.is_first() else nullcontext():
        return _train(recipe, inputs, view, stop, resuming=must_resume or recipe.resume != "never")


def _stopped(run: Path, number: int) -> RunOutcome:
    """Return the outcome of a run that a signal ended, by the checkpoints in its folder."""
    newest, _ = checkpoints.newest_whole(run)
    step = checkpoints.step_of(newest) if newest else 0
    return RunOutcome(None, newest, step, step, stopped_by=number)


def _open(recipe: Recipe) -> Inputs:
    inputs, training = open_inputs(recipe), recipe.training
    parallel.from_first(lambda: check_images(inputs))
    if inputs.validation is not None:
        asked = answers.draw(len(inputs.validation), training.score_records, training.seed)
        scoring.require_judgeable(inputs.validation, asked, training.scores)
    return inputs


def _train(recipe: Recipe, inputs: Inputs, view: TrainingView, stop: StopRequest, *, resuming: bool) -> RunOutcome:
    run = recipe.output

    def begin() -> Start:
        if resuming and resume.is_begun(run):
            return resume.resume_point(recipe, inputs.hashes, run, view.say)
        checkpoints.require_empty(run)
        return Start()

    extends = recipe.resume == "extend"
    begun = Start() if extends else parallel.from_first(begin)
    plan = run_plan.plan_run(recipe, inputs, view.say)
    if extends:
        begun = parallel.from_first(lambda: resume.extension_point(recipe, inputs.hashes, run, plan.steps, view.say))
    start = begun.checkpoint
    view.say(parallel.from_first(lambda: disk.require_space(plan, run)))
    keeps_options = parallel.from_first(lambda: start is not None and not resume.changes_memory(recipe, run))
    saving = run_plan.kept_memory_options(run) if keeps_options else plan.saving
    set_seed(recipe.training.seed)
    network = build(recipe, inputs, saving, view.say)
    if parallel.is_first():
        if not keeps_options:
            run_plan.keep(plan, run)
        if begun.extended:
            resume.set_adapter_aside(run, begun.extensions[-1].steps_before)
            extension.write(run, begun.extensions)
        resume.write_start(run, recipe, inputs.hashes)
    trackers.prepare(recipe.training.report_to, run)
    trainer = assemble(recipe, inputs, network, run)
    trainer.stop, trainer.checkpoint_bytes = stop, disk.checkpoint_bytes(plan)
    trainer.extensions = begun.extensions
    trainer.measure_by(flops_of(plan, RecordShapes.of(inputs.train)), run_plan.flops_per_s(plan))
    validation, samples = _add_callbacks(trainer, inputs, network, plan, view)
    with view, stop.deferred(), _saved_at_the_end(trainer):
        if start is None or _is_left_to_train(trainer, start, plan.steps, validation, samples):
            trainer.train(resume_from_checkpoint=str(start) if start else None)
    steps, progress = trainer.state.global_step, trainer.progress
    if stop.asked and not progress.stopped_early and (steps < trainer.state.max_steps or progress.pending):
        return _stopped(run, stop.number)
    if not progress.reproducible:
        view.say("memory ran out during training, and packs were cut: this run cannot be reproduced bit for bit")
    step = _take_best(trainer, view)
    if parallel.is_first():
        bundle.save(network.wrapped, run / "adapter", adapter_record.record(recipe, inputs, trainer, step))
    return RunOutcome(run / "adapter", None, steps, step, **adapter_record.measured(trainer, step))


def _add_callbacks(
    trainer: AdapterTrainer, inputs: Inputs, network: Network, plan: Plan, view: TrainingView
) -> tuple[Validation | None, Samples | None]:
    """Add the callbacks in the order in which they run each time."""
    trainer.add_callback(Rehearsal(trainer, inputs.packs[plan.need.worst], plan, view))
    if parallel.is_first():
        trainer.add_callback(Journal(trainer, view))
    validation, samples = None, None
    if inputs.validation is not None:
        images = images_of(trainer.recipe, inputs.validation.files, network)
        validation = Validation(trainer, inputs, images, view)
        trainer.add_callback(validation)
        if trainer.recipe.training.sample_every:
            samples = Samples(trainer, inputs, images, view)
            trainer.add_callback(samples)
    trainer.add_callback(GracefulStop(trainer))
    return validation, samples


def _is_left_to_train(
    trainer: AdapterTrainer, start: Path, steps: int, validation: Validation | None, samples: Samples | None
) -> bool:
    """Restore the counters of a checkpoint, measure what a stop left undone, and return whether steps are left."""
    progress = trainer.progress
    progress.restore(start)
    trainer.state = TrainerState.load_from_json(str(start / "trainer_state.json"))
    if validation is not None and progress.pending:
        trainer._load_from_checkpoint(str(start))
        if not catch_up(trainer, validation, samples, start):
            return False
    patience = trainer.recipe.training.early_stopping  # number of steps, which an extension may have raised
    progress.stopped_early = patience is not None and progress.worse_measurements >= patience
    if checkpoints.step_of(start) < steps and not progress.stopped_early:
        return True
    trainer._load_from_checkpoint(str(start))  # only the adapter folder was still to be written
    trainer.state.max_steps = trainer.state.global_step
    return False


@contextmanager
def _saved_at_the_end(trainer: AdapterTrainer) -> Iterator[None]:
    """Save the last finished step whatever ends the training, and raise an error that names the checkpoint."""
    try:
        yield
    except StopRequested:
        trainer.save_last_step()
        raise
    except Exception as error:
        unsaved = None
        try:
            if not isinstance(error, disk.DiskFullError):
                trainer.save_last_step()
        except Exception as second:  # the first error is the one to report
            unsaved = str(describe(second))
        if isinstance(error, LostPeerError) or parallel.is_lost_peer(error):
            raise
        newest, _ = checkpoints.newest_whole(trainer.run_folder)
        raise RunFailedError(describe(error), trainer.state.global_step, newest, unsaved) from error


def _take_best(trainer: AdapterTrainer, view: TrainingView) -> int:
    """Load the weights of the best step on the validation set into the model; return that step."""
    last, best = trainer.state.global_step, trainer.progress.best_step
    if best is None or best == last:
        return last
    folder = trainer.run_folder / f"{checkpoints.PREFIX}{best}"
    if problem := checkpoints.damage(folder):
        view.say(f"the best checkpoint cannot be used, so the adapter is from the last step: {folder}: {problem}")
        return last
    trainer._load_from_checkpoint(str(folder))
    return best
