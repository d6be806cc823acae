"""Time one way of training on the twin in its own process: `python -m ixtune.bench.worker`, with a case on stdin."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Sized
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from ixtune import platforms
from ixtune.adapter import attach
from ixtune.adapter.low_memory import lean_lora
from ixtune.base import resolve
from ixtune.bench import mix, synthetic, twin
from ixtune.bench.plain import PlainIXC2
from ixtune.data.pack import pack
from ixtune.planning.memory_options import MemoryOptions, apply
from ixtune.recipe.recipe import Recipe
from ixtune.tokenization import IXC2Tokenizer
from ixtune.training.trainer import AdapterTrainer
from ixtune.training.trl_settings import sft_config

VISION_CHUNK = 16


class _Clock(TrainerCallback):
    """Measure the CPU seconds of every optimizer step; the first one warms up and is not counted."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self.began = time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop the clock."""
        self.seconds.append(time.process_time() - self.began)


def run(case: dict[str, Any]) -> dict[str, Any]:
    """Train one pass over the mix, after a warm-up step on its first batch.

    Args:
        case: `way` (ixtune, plain), `mix`, `records`, `batch` (plain: records a batch), `pack_tokens` (ixtune), `share`
            (ixtune: whether records share their page), `checkpointed` (whether layers are), `config`, `rank`.

    Returns:
        cpu_s of the pass, its real tokens, peak_mib over the state after imports, losses of the steps.
    """
    torch.set_num_threads(1)
    before = platforms.resident_bytes() / 2**20
    records = mix.records(case["records"], case.get("mix", mix.NAME))
    contents = synthetic.contents(records, case["config"]["vocab_size"])
    recipe = _recipe(case)
    network = twin.build(case["config"], nf4=True)
    torch.manual_seed(0)
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        if case["way"] == "ixtune":
            prefixes = mix.prefixes(records) if case.get("share") else None
            packs = pack([record.tokens for record in records], case["pack_tokens"], prefixes)
            batches = [
                synthetic.pack(
                    [contents[index] for index in chosen], list(prefixes.groups(chosen)) if prefixes else None
                )
                for chosen in packs
            ]
            trainer = _ours(network, recipe, batches, Path(folder), checkpointed=case["checkpointed"])
        else:
            groups = [contents[start : start + case["batch"]] for start in range(0, len(contents), case["batch"])]
            batches = [synthetic.pad(group) for group in groups]
            trainer = _plain(network, recipe, batches, Path(folder), checkpointed=case["checkpointed"])
        trainer.add_callback(clock)
        trainer.train()
    return {
        "cpu_s": sum(clock.seconds[1:]),
        "steps": len(clock.seconds) - 1,
        "tokens": sum(record.tokens for record in records),
        "peak_mib": platforms.peak_memory_bytes() / 2**20 - before,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }


def _recipe(case: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(
        {
            "base": "nano",
            "data": {"train": "none"},
            "adapter": {"rank": case["rank"], "alpha": case["rank"], "dropout": case.get("dropout", 0.0)},
            "training": {
                "max_steps": case["max_steps"],
                "log_every": 1,
                "compute_dtype": "bf16",
                "save_every": 10**6,
                "warmup_ratio": 0,
            },
            "output": "none",
        }
    )


def _ours(network: Any, recipe: Recipe, batches: list[Any], folder: Path, *, checkpointed: bool) -> Trainer:
    wrapped = attach.attach(network, recipe.adapter)
    lean_lora(wrapped)
    layers = network.config.num_hidden_layers if checkpointed else 0
    apply(network, MemoryOptions(layers, VISION_CHUNK, False))
    trainer = AdapterTrainer(
        model=wrapped,
        args=sft_config(recipe, folder),
        train_dataset=_numbers(batches),
        data_collator=lambda rows: {**batches[rows[0]["records"][0] % len(batches)], "records": ()},
        processing_class=IXC2Tokenizer(str(resolve("nano") / "tokenizer.model")),
        recipe=recipe,
        run_folder=folder,
    )
    _in_order(trainer)
    return trainer


def _plain(network: Any, recipe: Recipe, batches: list[Any], folder: Path, *, checkpointed: bool) -> Trainer:
    from peft import get_peft_model

    training = recipe.training
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=training.max_steps or -1,
        per_device_train_batch_size=1,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        adam_beta2=training.adam_beta2,
        bf16=True,
        use_cpu=True,
        gradient_checkpointing=checkpointed,
        gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointed else None,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    plain = PlainIXC2(network)
    plain.train()
    config = attach.lora_config(recipe.adapter)
    config.target_modules = [f"{name}.linear" for name in ("wqkv", "wo", "w1", "w2", "w3")]
    config.rank_pattern, config.alpha_pattern, config.task_type = {}, {}, None
    trainer = Trainer(
        model=get_peft_model(plain, config),
        args=arguments,
        train_dataset=_numbers(batches),
        data_collator=lambda rows: batches[rows[0]["records"][0] % len(batches)],
    )
    _in_order(trainer)
    return trainer


def _numbers(batches: list[Any]) -> Dataset:
    """Return the row numbers: the first batch for the warm-up, then every batch once."""
    return Dataset.from_dict({"records": [[0], *([number] for number in range(len(batches)))]})


def _in_order(trainer: Trainer) -> None:
    """Take the rows in order, and print nothing."""
    from torch.utils.data import SequentialSampler
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    rows = cast(Sized, trainer.train_dataset)
    trainer._get_train_sampler = lambda *_: SequentialSampler(rows)  # type: ignore[method-assign]


def main() -> None:
    """Read a case, and print the measurements as the last line."""
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    found = run(json.load(sys.stdin))
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
