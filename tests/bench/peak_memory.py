"""Measure the peak memory of a training step from outside: VmHWM of a separate process.

Run as a script it reads one case as JSON from stdin and prints what it found as JSON. The C library is set to give
every large block back at once, so that resident memory follows the tensors; importing and a first step of a tiny model
happen before the base line is taken, so that what libraries set up once is in it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ixtune.bench.twin import CONFIG
from ixtune.checkpoint.sizes import Sizes
from ixtune.family import FOUR_KHD
from ixtune.planning.flops import PackShape
from ixtune.planning.memory import Memory, Setup, peak
from ixtune.planning.memory_options import MemoryOptions
from ixtune.recipe.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
# large blocks from mmap, one arena: what is freed goes back
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_MMAP_MAX_": "1000000",
    "MALLOC_ARENA_MAX": "1",
}


def case(
    *,
    lengths: list[int],
    grids: list[list[int]],
    supervised: int,
    checkpointed_layers: int,
    vision_chunk: int = 8,
    offload_layer_inputs: bool = False,
    compute: str = "bf16",
    optimizer: str = "adamw",
    accumulation: int = 1,
    parents: list[int] | None = None,
    **adapter: Any,
) -> dict[str, Any]:
    """Return a pack, recipe settings and memory options as a JSON-serializable dict."""
    return {
        "config": CONFIG,
        "lengths": lengths,
        "grids": grids,
        "parents": parents,
        "supervised": supervised,
        "compute": compute,
        "optimizer": optimizer,
        "accumulation": accumulation,
        "adapter": {"rank": 32, "alpha": 32, **adapter},
        "levers": {
            "checkpointed_layers": checkpointed_layers,
            "vision_chunk": vision_chunk,
            "offload_layer_inputs": offload_layer_inputs,
        },
    }


def setup(case: dict[str, Any]) -> Setup:
    """Return the inputs of the plan."""
    training = {
        "compute_dtype": case["compute"],
        "optimizer": case["optimizer"],
        "gradient_accumulation": case["accumulation"],
    }
    sections = {"adapter": case["adapter"], "training": training}
    recipe = Recipe.model_validate({"base": "nano", "data": {"train": "none"}, "output": "none", **sections})
    return Setup.of(recipe, Sizes.from_config_json(case["config"]), "cpu", MemoryOptions(**case["levers"]))


def shape(case: dict[str, Any]) -> PackShape:
    """Return the pack of a case."""
    return PackShape(
        lengths=tuple(case["lengths"]),
        image_tokens=sum(FOUR_KHD.tokens(*grid) for grid in case["grids"]),
        supervised=case["supervised"],
        crops=tuple(rows * cols for rows, cols in case["grids"]),
        prefixes=tuple(0 if parent < 0 else case["lengths"][parent] for parent in case["parents"] or ()),
    )


def planned(case: dict[str, Any]) -> Memory:
    """Return the plan of a case."""
    return peak(setup(case), shape(case))


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Run a case in a new process."""
    environment = os.environ | ALLOCATOR | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, __file__], input=json.dumps(case), capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _status(name: str) -> int:
    """Return the value of a line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def _settle() -> int:
    """Free unused memory, reset the peak, and return the resident bytes."""
    import ctypes
    import gc

    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return _status("VmRSS")


def _network(config: dict[str, Any], case: dict[str, Any]) -> Any:
    """Return a model with random weights, quantized and adapted as in the recipe, with its memory options."""
    from ixtune.adapter import attach
    from ixtune.adapter.low_memory import lean_lora
    from ixtune.bench.twin import build
    from ixtune.planning import memory_options
    from ixtune.recipe.recipe import AdapterSection

    section = AdapterSection.model_validate(case["adapter"])
    model = build(config, nf4=section.quantize == "nf4")
    if case["compute"] == "fp32":
        model.float()
    wanted = memory_options.MemoryOptions(**case["levers"])
    layers = min(wanted.checkpointed_layers, config["num_hidden_layers"])
    wrapped = attach.attach(model, section)
    lean_lora(wrapped)
    memory_options.apply(model, dataclasses.replace(wanted, checkpointed_layers=layers))
    return wrapped.train()


def _batch(config: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    import torch

    grids = [tuple(grid) for grid in case["grids"]]
    spans = [FOUR_KHD.tokens(*grid) for grid in grids]
    lengths = list(case["lengths"])
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    rows = []
    for start, span in zip(bounds.tolist(), spans, strict=False):
        rows += range(start + 1, start + 1 + span)
    ids = torch.randint(3, config["vocab_size"], (1, sum(lengths)))
    if rows:
        ids[0, rows] = 0
    supervised = torch.arange(sum(lengths) - case["supervised"] - 1, sum(lengths) - 1)
    batch = {
        "input_ids": ids,
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "cu_seq_lens_q": bounds.int(),
        "max_length_q": max(lengths),
        "supervised": (supervised, ids[0, supervised + 1]),
    }
    if case["parents"]:
        batch["parents"] = tuple(case["parents"])
    if grids:
        side = config["vision_config"].get("image_size", 336)
        crops = sum(rows * cols for rows, cols in grids)
        batch["crops"] = torch.randint(0, 255, (crops, 3, side, side), dtype=torch.uint8)
        batch["grids"] = grids
        batch["image_rows"] = torch.tensor(rows)
    return batch


def _optimizer(model: Any, name: str) -> Any:
    import bitsandbytes as bnb
    import torch

    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(parameters) if name == "adamw" else bnb.optim.AdamW8bit(parameters)


def _steps(model: Any, config: dict[str, Any], case: dict[str, Any], count: int) -> None:
    import torch

    optimizer = _optimizer(model, case["optimizer"])
    for _ in range(count):
        for _ in range(case["accumulation"]):
            batch = _batch(config, case)
            with torch.autocast("cpu", torch.bfloat16, enabled=case["compute"] == "bf16"):
                loss = model(**batch, num_items_in_batch=case["supervised"], use_cache=False).loss
            loss.backward()
            del loss, batch
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        model.zero_grad()


def _main() -> None:
    case = json.loads(sys.stdin.read())
    import torch

    torch.manual_seed(0)
    tiny = {**case["config"], "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1, "vocab_size": 256}
    tiny |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    tiny["vision_config"] = {**tiny["vision_config"], "num_hidden_layers": 1}
    # what libraries set up once
    small = case | {"lengths": [400], "grids": [[1, 1]], "supervised": 8, "accumulation": 1}
    warm = _network(tiny, small)
    _steps(warm, tiny, small, 1)
    del warm
    before = _settle()
    model = _network(case["config"], case)
    loaded = _settle()
    _steps(model, case["config"], case, 2)
    print(json.dumps({"weights_bytes": loaded - before, "peak_bytes": _status("VmHWM") - before}))


if __name__ == "__main__":
    _main()
