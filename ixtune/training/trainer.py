"""Train packs with TRL's SFTTrainer: own batches, loss on supervised rows, atomic checkpoints."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from peft import PeftModel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler
from transformers import get_scheduler, set_seed
from trl import SFTConfig, SFTTrainer

from ixtune.adapter import attach
from ixtune.errors import IxtuneError
from ixtune.files import atomic_folder
from ixtune.recipe.recipe import Recipe
from ixtune.training import memory_fallback, optimizer
from ixtune.training.batch import PackCollator
from ixtune.training.monitoring.metrics import Meter
from ixtune.training.nonfinite import MicroBatch, require_finite
from ixtune.training.prefetch import Prefetcher
from ixtune.training.processes import launch, parallel
from ixtune.training.state import checkpoints, disk, extension
from ixtune.training.state.boundary import Boundary
from ixtune.training.state.extension import Extension
from ixtune.training.state.progress import Progress
from ixtune.training.stopping import StopRequest, StopRequested, raise_together

_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


class EpochPermutation(Sampler[int]):
    """Shuffle the packs of an epoch by seed and epoch only, so that a resumed run repeats the order.

    Empty packs, which fill up the last step of several processes, stay at the end.
    """

    def __init__(
        self,
        packs: int,
        seed: int,
        fillers: int = 0,
        announced: Callable[[Sequence[int]], None] = lambda order: None,
    ) -> None:
        """Shuffle `packs` packs and keep `fillers` empty ones at the end; `announced` receives each epoch's order."""
        self.packs, self.fillers, self.seed, self.epoch = packs, fillers, seed, 0
        self.announced = announced

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; accelerate's loader calls this at the start of each."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.packs + self.fillers

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.packs))
        random.Random(f"{self.seed} {self.epoch}").shuffle(order)
        order += range(self.packs, len(self))
        self.announced(order)
        return iter(order)


def sft_config(recipe: Recipe, steps_folder: Path) -> SFTConfig:
    """Return TRL's settings for a recipe; every default of TRL's that differs is set here (TRAPS.md 9, 10)."""
    training = recipe.training
    config = SFTConfig(
        output_dir=str(steps_folder),
        num_train_epochs=training.epochs,
        max_steps=training.max_steps or -1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=training.gradient_accumulation,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        adam_beta2=training.adam_beta2,
        max_grad_norm=training.max_grad_norm,
        warmup_steps=training.warmup_ratio,
        lr_scheduler_type=_SCHEDULES[training.schedule],
        optim=optimizer.OPTIMIZERS[training.optimizer],
        activation_checkpointing=False,  # the memory options do this; transformers would switch it on for all layers
        bf16=training.compute_dtype == "bf16",
        fp16=False,
        use_cpu=not torch.cuda.is_available(),
        seed=training.seed,
        data_seed=training.seed,
        logging_steps=training.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it would show the mean of the good losses in place of a NaN
        save_steps=training.save_every,
        save_strategy="steps",
        report_to=list(training.report_to) or "none",
        run_name=steps_folder.name,
        project="ixtune",
        trackio_static_space_id=False,  # its copy of the metrics stays on this machine
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        packing=False,
        average_tokens_across_devices=True,
    )
    if config.n_gpu > 1:
        config._n_gpu = 1  # one process has one GPU; DataParallel would cut the batch by its first axis
    return config


class AdapterTrainer(SFTTrainer):
    """SFTTrainer whose loss runs through the whole model, images included (TRAPS.md 7)."""

    model: PeftModel  # transformers allows for none

    def __init__(self, *args: Any, recipe: Recipe, run_folder: Path, **kwargs: Any) -> None:
        self.recipe, self.run_folder = recipe, run_folder
        self.progress = Progress()
        self.meter = Meter(self.progress)
        self.flops_of: Callable[[Sequence[int]], float] | None = None
        self.on_cut: Callable[[str], None] = lambda sentence: None
        self.stop = StopRequest()
        self.boundary = Boundary(self, self.progress)
        self.extensions: Sequence[Extension] = ()
        self.left_together = False
        """True if an exception was raised in all processes at the same place, so that they can save together."""
        self.checkpoint_bytes = 0
        """Approximate size of a checkpoint, for the message about a full disk."""
        self._trouble: BaseException | None = None
        self._collected = False
        self._random_states: list[bytes] = []
        self._sampler: EpochPermutation | None = None
        self._step: list[MicroBatch] = []
        self._rates: dict[str, float] = {}
        self._partial: Path | None = None
        self._prefetcher: Prefetcher | None = None
        super().__init__(*args, **kwargs)
        self.add_callback(self.boundary)
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
                self._meet(error)
            raise

    def _meet(self, error: BaseException | None) -> None:
        """Raise an exception of one process in all processes."""
        self._trouble = None
        try:
            raise_together(error)
        except BaseException:
            self.left_together = True
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
        self._meet(None)
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
        self._meet(self._trouble)
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
        if self._sampler is not None:  # None where a caller brings a sampler, as the benchmark does
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

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._partial or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Let transformers write its checkpoint into a temporary folder, then seal it and move it into place."""
        final = self.run_folder / f"{checkpoints.PREFIX}{self.state.global_step}"
        if parallel.from_first(final.exists):
            return  # a stop right after a regular save asks for the same step again
        with self.meter.idle():
            # all collectives before anything is written: the others would wait in one that a failed write never reaches
            self.store_flos()
            gathered = parallel.gather((self._random_state(), float(self._tr_loss)))
            self._random_states = [state for state, _ in gathered]
            self.progress.unlogged_losses = [loss for _, loss in gathered]
            self.progress.logged_step = self._globalstep_last_logged
            error: Exception | None = None
            if parallel.is_first():
                try:
                    self._write_checkpoint(model, trial, final)
                except Exception as raised:
                    error = raised
            self._meet(error)

    def _write_checkpoint(self, model: torch.nn.Module, trial: Any, final: Path) -> None:
        try:
            with atomic_folder(final) as partial:
                self._partial = partial
                try:
                    super()._save_checkpoint(model, trial)  # type: ignore[no-untyped-call]
                finally:
                    self._partial = None
                written = partial / final.name
                for entry in written.iterdir():
                    entry.rename(partial / entry.name)
                written.rmdir()
                self.meter.update_seconds()
                self.progress.save(partial)
                checkpoints.seal(partial)
            progress, training = self.progress, self.recipe.training
            if progress.best_step == self.state.global_step:
                checkpoints.mark_best(final, training.best_by, progress.best_loss, progress.best_scores)
            checkpoints.rotate(self.run_folder, training.keep_checkpoints, progress.best_step)
        except Exception as error:
            if disk.is_full(error):
                raise disk.DiskFullError(self.run_folder, self.checkpoint_bytes, "a checkpoint needs") from error
            raise

    def store_flos(self) -> None:
        """Add up the operations of all processes; while the first one writes a checkpoint, that is done already."""
        if self._partial is None:
            super().store_flos()

    def save_last_step(self) -> Path | None:
        """Save a checkpoint of the last finished step after something was raised in the middle of the next one.

        Weights and optimizer are those of the last finished step until the optimizer changes them. Random states and
        counters are restored to that step, so that the resumed run repeats the step bit for bit.

        Returns:
            The checkpoint, or None if no step was finished, the weights are between two steps, or another process has
            ended, whose random state is needed to resume bit for bit.
        """
        if not self.state.global_step or not self.boundary.restore():
            return None
        if self.args.world_size > 1 and not self.left_together:
            return None
        self._save_checkpoint(self.model, None)
        return self.run_folder / f"{checkpoints.PREFIX}{self.state.global_step}"

    def _save_rng_state(self, output_dir: str) -> None:
        """Write the random states of all processes, in transformers' file format."""
        for number, content in enumerate(self._random_states):
            name = "rng_state.pth" if self.args.world_size == 1 else f"rng_state_{number}.pth"
            (Path(output_dir) / name).write_bytes(content)

    def _random_state(self) -> bytes:
        """Return the random state of this process as transformers writes it into a checkpoint."""
        with tempfile.TemporaryDirectory() as folder:
            super()._save_rng_state(folder)
            (path,) = Path(folder).iterdir()
            return path.read_bytes()

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write no card: TRL's would name neither the base's terms nor ours, and the bundle writes one."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save the adapter only: no tokenizer copies, and no pickled training arguments (TRAPS.md 10c)."""
        if not self.args.should_save:  # only the first process writes
            return
        assert output_dir is not None  # transformers names the folder at every save
        self.model.save_pretrained(output_dir, state_dict=state_dict)
        (Path(output_dir) / "README.md").unlink(missing_ok=True)
