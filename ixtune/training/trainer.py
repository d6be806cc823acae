"""TRL's SFTTrainer on our packs: our batch, our loss on supervised rows, our checkpoints' safety. No more."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch.utils.data import Sampler
from trl import SFTConfig, SFTTrainer

from ixtune.adapter import attach
from ixtune.files import atomic_folder
from ixtune.recipe import Recipe
from ixtune.training import checkpoints

_OPTIMIZERS = {"adamw": "adamw_torch", "adamw_8bit": "adamw_bnb_8bit"}
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


class EpochPermutation(Sampler[int]):
    """The packs of an epoch in an order that depends on seed and epoch only, so that a resumed run repeats it."""

    def __init__(self, packs: Sized, seed: int) -> None:
        self.count, self.seed, self.epoch = len(packs), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's loader at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.count))
        random.Random(f"{self.seed} {self.epoch}").shuffle(order)
        return iter(order)


def sft_config(recipe: Recipe, steps_folder: Path) -> SFTConfig:
    """TRL's settings of a recipe; every default of TRL's that differs from ours is set here (TRAPS.md 9, 10)."""
    training = recipe.training
    return SFTConfig(
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
        optim=_OPTIMIZERS[training.optimizer],
        activation_checkpointing=bool(training.gradient_checkpointing),
        activation_checkpointing_kwargs={"use_reentrant": False} if training.gradient_checkpointing else None,
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
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        packing=False,
        average_tokens_across_devices=True,
    )


class AdapterTrainer(SFTTrainer):
    """SFTTrainer whose loss runs through the whole model, pictures included (TRAPS.md 7)."""

    model: PeftModel  # transformers allows for none

    def __init__(self, *args: Any, recipe: Recipe, run_folder: Path, **kwargs: Any) -> None:
        self.recipe, self.run_folder = recipe, run_folder
        self.seen_tokens = self.seen_supervised = 0
        self._partial: Path | None = None
        super().__init__(*args, **kwargs)
        attach.restore_fp32(self.model)
        attach.check(self.model, recipe.adapter)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The model's own loss on supervised rows; TRL's fused head would bypass the pictures."""
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch, use_cache=False)
        if model.training:
            self.seen_tokens += inputs["input_ids"].numel()
            self.seen_supervised += len(inputs["supervised"][1])
        loss = outputs.loss
        if num_items_in_batch is not None and self.args.world_size > 1:
            loss = loss * self.args.world_size  # DDP takes the mean of the processes' gradients
        return (loss, outputs) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Any:
        """Supervised tokens of the whole optimizer step, over all processes."""
        count = torch.tensor(sum(len(batch["supervised"][1]) for batch in batch_samples), device=device)
        return self.accelerator.gather(count).sum() if self.args.world_size > 1 else count

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochPermutation:
        return EpochPermutation(cast(Sized, train_dataset or self.train_dataset), self.recipe.training.seed)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """LoRA and projector as groups of their own, each with its learning rate; no decay on biases."""
        if self.optimizer is None:
            training = self.recipe.training
            rates = {True: training.projector_learning_rate or training.learning_rate, False: training.learning_rate}
            groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
            for name, parameter in attach.trainable(self.model):
                groups.setdefault((attach.PROJECTOR in name, parameter.ndim < 2), []).append(parameter)
            # The model is for optimizers that pick their own layers; none of ours does.
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)  # type: ignore[arg-type]
            settings.pop("lr", None)
            self.optimizer = kind(
                [
                    {"params": params, "lr": rates[projector], "weight_decay": 0.0 if bias else training.weight_decay}
                    for (projector, bias), params in groups.items()
                ],
                lr=training.learning_rate,
                **settings,
            )
        return self.optimizer

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._partial or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Let transformers write its checkpoint into a temporary folder, then seal it and move it into place."""
        final = self.run_folder / f"{checkpoints.PREFIX}{self.state.global_step}"
        if final.exists():
            return  # a stop right after a regular save asks for the same step again
        with atomic_folder(final) as partial:
            self._partial = partial
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._partial = None
            written = partial / final.name
            for entry in written.iterdir():
                entry.rename(partial / entry.name)
            written.rmdir()
            checkpoints.seal(partial)
        checkpoints.rotate(self.run_folder, self.recipe.training.keep_checkpoints)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL's card would name neither the base's terms nor ours; the bundle writes its own."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The adapter only: no tokenizer copies, and no pickled training arguments (TRAPS.md 10c)."""
        assert output_dir is not None  # transformers names the folder at every save
        self.model.save_pretrained(output_dir, state_dict=state_dict)
        (Path(output_dir) / "README.md").unlink(missing_ok=True)
