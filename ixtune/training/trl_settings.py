"""Settings of TRL's trainer for a recipe."""

from __future__ import annotations

from pathlib import Path

import torch
from trl import SFTConfig

from ixtune.recipe.recipe import Recipe
from ixtune.training.step import optimizer

_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


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
