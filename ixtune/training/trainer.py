"""Train packs with TRL's SFTTrainer: own batches, loss on supervised rows, several processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler, set_seed

from ixtune.adapter import attach
from ixtune.errors import IxtuneError
from ixtune.recipe.recipe import Recipe
from ixtune.training.batch import PackCollator
from ixtune.training.monitoring.metrics import Meter
from ixtune.training.prefetch import Prefetcher
from ixtune.training.processes import launch, parallel
from ixtune.training.state import extension
from ixtune.training.state.checkpoint_trainer import CheckpointTrainer
from ixtune.training.state.extension import Extension
from ixtune.training.step import memory_fallback, optimizer
from ixtune.training.step.nonfinite import MicroBatch, require_finite
from ixtune.training.step.sampler import EpochPermutation
from ixtune.training.stopping import StopRequest, StopRequested


class AdapterTrainer(CheckpointTrainer):
    """SFTTrainer whose loss runs through the whole model, images included (TRAPS.md 7)."""

    def __init__(self, *args: Any, recipe: Recipe, run_folder: Path, **kwargs: Any) -> None:
        self.flops_of: Callable[[Sequence[int]], float] | None = None
        self.on_cut: Callable[[str], None] = lambda sentence: None
        self.stop = StopRequest()
        self.extensions: Sequence[Extension] = ()
        self.failure: Exception | None = None
        """What ended a measurement in all processes; raised once the step is logged and saved."""
        self._trouble: BaseException | None = None
        self._collected = False
        self._sampler: EpochPermutation | None = None
        self._step: list[MicroBatch] = []
        self._rates: dict[str, float] = {}
        self._prefetcher: Prefetcher | None = None
        super().__init__(*args, recipe=recipe, run_folder=run_folder, **kwargs)
        attach.restore_fp32(self.model)
        attach.check(self.model, recipe.adapter)

    @property
    def collator(self) -> PackCollator:
        """Return the collator, which makes the batches and knows their records."""
        return cast(PackCollator, self.data_collator)

    def measure_by(self, flops_of: Callable[[Sequence[int]], float], flops_per_s: float | None) -> None:
        """Set how many operations the records of a pack need, and the peak FLOP/s of the run's GPUs."""
        self.flops_of, self.meter = flops_of, Meter(self.progress, flops_per_s)

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Run forward and backward of one pack, split if memory runs out; remember its records for the step."""
        nothing = torch.zeros((), device=self.args.device)
        if "input_ids" not in inputs or self._trouble:  # a filler: this process has one pack less in this epoch
            return nothing
        try:
            if self.stop.overdue:
                raise StopRequested(self.stop.number)
            loss = memory_fallback.step_in_parts(
                lambda part: self.forward_backward(model, part, num_items_in_batch),
                inputs,
                self.model,
                make=lambda records: self.collator.make(records),
                log=self._cut,
                named=lambda part: self.collator.training_set.identity(part["records"][0]),
            )
        except (Exception, StopRequested) as error:
            if self.args.world_size == 1:
                raise
            self._trouble = error  # the others wait at the end of the step; until then there is nothing to compute
            return nothing
        self._step.append(MicroBatch(inputs["records"], loss))
        return loss

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Collect the batches of a step; a failure in one process ends all of them at the same place."""
        self.boundary.begin_step()
        self._collected = False
        try:
            return super().get_batch_samples(*args, **kwargs)
        except Exception as error:
            if not self._collected:  # the others are about to sum their tokens
                self.meet(error)
            raise

    def forward_backward(
        self, model: torch.nn.Module, batch: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Run SFTTrainer's forward and backward on a batch."""
        taken = {key: value for key, value in batch.items() if key != "records"}
        loss: torch.Tensor = super().training_step(  # type: ignore[no-untyped-call]
            model, taken, num_items_in_batch
        )
        return loss

    def _cut(self, sentence: str) -> None:
        """Record that a pack was split because memory ran out."""
        self.progress.reproducible = False
        self.on_cut(sentence)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Compute the model's own loss on supervised rows; TRL's fused head would bypass the images."""
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch, use_cache=False)
        loss = outputs.loss
        if (
            torch.is_grad_enabled() and not loss.requires_grad
        ):  # only the projector is trained, and this pack has no image
            loss = loss + 0 * next(parameter for _, parameter in attach.trainable(self.model)).sum()
        if num_items_in_batch is not None and self.args.world_size > 1:
            loss = loss * self.args.world_size  # what follows takes the mean over the processes
        return (loss, outputs) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Any:
        """Return the supervised tokens of the optimizer step over all processes, and add them to the progress."""
        self._collected = True
        self.meet(None)
        batches = [batch for batch in batch_samples if "input_ids" in batch]
        tokens, computed, supervised, flops, cut = parallel.total(
            sum(self.collator.training_set.lengths[index] for batch in batches for index in batch["records"]),
            sum(batch["input_ids"].numel() for batch in batches),
            sum(len(batch["supervised"][1]) for batch in batches),
            sum(self.flops_of(batch["records"]) for batch in batches) if self.flops_of else 0.0,
            not self.progress.reproducible,
        )
        self.progress.reproducible = not cut  # in all processes, since the first one records it
        self.progress.tokens += int(tokens)
        self.progress.computed_tokens += int(computed)
        self.progress.supervised_tokens += int(supervised)
        self.progress.flops += flops
        return torch.tensor(supervised, device=device)

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        trouble, self._trouble = self._trouble, None
        self.meet(trouble)
        parallel.average_gradients(model.parameters())
        return super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Check loss and gradient norm right before the optimizer step; raise if either is not finite."""
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        try:
            require_finite(self, self._step, norm, collator=self.collator, run_folder=self.run_folder)
        except IxtuneError:
            self.left_together = True
            raise
        self._step.clear()
        return norm

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Log and save; then raise the error of a measurement of this step."""
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochPermutation:
        packs: Dataset = train_dataset or self.train_dataset
        fillers = sum(not records for records in packs["records"])
        seed, announced = self.recipe.training.seed, self._announced(packs)
        self._sampler = EpochPermutation(len(packs) - fillers, seed, fillers, announced)
        return self._sampler

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Run an epoch in its own order of packs.

        transformers and accelerate set the epoch too, but do not reach the sampler of a run of several processes that
        resumes in the middle of an epoch: it would repeat the order of the first one.
        """
        if self._sampler is not None:  # None where a caller passes a sampler, as the benchmark does
            self._sampler.set_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _announced(self, packs: Dataset) -> Callable[[Sequence[int]], None]:
        """Prefetch the next packs on a GPU; on a CPU the step needs the cores itself."""
        collator = self.data_collator
        if self.args.device.type == "cpu" or not isinstance(collator, PackCollator) or collator.images.model:
            return lambda order: None
        return self.prefetch(packs)

    def prefetch(self, packs: Dataset) -> Callable[[Sequence[int]], None]:
        """Start prefetching batches; return the callback that receives each epoch's pack order."""
        prefetcher = Prefetcher(self.collator.make, self.args.gradient_accumulation_steps + 1)
        self.collator.take, self._prefetcher = prefetcher.take, prefetcher
        records = [tuple(indices) for indices in packs["records"]]  # at once: row by row would take seconds

        def announced(order: Sequence[int]) -> None:
            mine = order[launch.rank() :: self.args.world_size]  # packs are distributed round-robin
            prefetcher.follow([records[index] for index in mine if records[index]])

        return announced

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as transformers does, and drop prefetched batches at the end."""
        try:
            return super().train(*args, **kwargs)
        finally:
            if self._prefetcher is not None:
                self._prefetcher.close()
                self.collator.take = self.collator.make

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        # transformers' flag for gradients that accelerate does not reduce: no DistributedDataParallel
        self.is_distributed_loading_by_transformers = self.args.world_size > 1
        try:
            return super()._prepare_for_training(*args, **kwargs)  # type: ignore[no-untyped-call]
        finally:
            self.is_distributed_loading_by_transformers = False

    def _sync_replicated_trainable_parameters(self, model: torch.nn.Module) -> None:
        parallel.start_equal(parameter for _, parameter in attach.trainable(self.model))
        if not parallel.is_first():
            set_seed(self.args.seed + launch.rank())  # different dropout per process; a resumed run loads its own later

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create the learning-rate schedule; that of an extended run changes from the old one to the new one."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if self.extensions and isinstance(scheduler, LambdaLR):
            totals = [self.extensions[0].steps_before, *(one.steps_after for one in self.extensions)]
            multiplier = extension.schedule(
                [self._multiplier(total) for total in totals], self.extensions, self.recipe.training.warmup_ratio
            )
            scheduler.lr_lambdas = [multiplier] * len(scheduler.lr_lambdas)
        return scheduler

    def _multiplier(self, steps: int) -> extension.Multiplier:
        """Return the schedule of a run of `steps` steps as a function of the step."""
        nothing = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
        scheduler = get_scheduler(
            self.args.lr_scheduler_type, nothing, self.args.get_warmup_steps(steps), num_training_steps=steps
        )
        return cast(extension.Multiplier, scheduler.lr_lambdas[0])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load both; the first step after an extension has the new schedule's rate, not the checkpoint's."""
        super()._load_optimizer_and_scheduler(checkpoint)
        scheduler = self.lr_scheduler
        if checkpoint and self.extensions and isinstance(scheduler, LambdaLR):
            rates = [
                base * multiplier(scheduler.last_epoch)
                for base, multiplier in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
            ]
            for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            scheduler._last_lr = rates

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimizer on the recipe's parameter groups."""
        if self.optimizer is None:
            self.optimizer = optimizer.create(self.model, self.recipe, self.args)
        return self.optimizer

    def _get_learning_rate(self) -> float:
        """Return the first group's learning rate and remember the others'; the scheduler steps after this call."""
        assert self.optimizer is not None
        self._rates = {group["part"]: group["lr"] for group in self.optimizer.param_groups}
        return super()._get_learning_rate()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add speed, totals, memory and learning rates, so that metrics.jsonl and the trackers get the same values."""
        if "loss" in logs:
            others = {part: rate for part, rate in self._rates.items() if rate != logs["learning_rate"]}
            logs |= {f"{part}_learning_rate": rate for part, rate in others.items()}
            logs |= self.meter.measure()
        super().log(logs, start_time)
