"""What this machine has, whether it is sound, and what it can train. Nothing is installed, loaded or downloaded."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ixtune import base
from ixtune.errors import IxtuneError
from ixtune.planning import gpus, record_mixes
from ixtune.planning.gpus import Machine
from ixtune.recipe import recipe
from ixtune.recipe.shipped_recipes import Shipped, shelf

_GIB = 2**30
_PYTHON = ((3, 11), (3, 15))  # from, and before
_LIBRARIES = ("transformers", "peft", "trl", "datasets", "accelerate")
_BASE_GB = 17.2
_RUN_GIB = 5  # checkpoints of an adapter with the optimizer's state, and a prepared set
_HUB_TIMEOUT_S = 4.0
_NF4_LOSS = 0.15  # of normal numbers it loses 0.09


@dataclass(frozen=True, slots=True)
class Check:
    """One finding.

    Attributes:
        name: of what.
        state: ok; note: works, with a limit; broken: training cannot work.
        found: what there is, in one line.
        mend: what to do, where it is not ok.
    """

    name: str
    state: Literal["ok", "note", "broken"]
    found: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Trainable:
    """What the plan says of a shipped recipe.

    Attributes:
        recipe: its name.
        mix: the made-up records it is planned on; None for the embedded base, which runs anywhere.
        least_bytes: memory of a GPU with which it would just run.
        needed_bytes: what it would take here; None without a GPU.
        fits: whether it can be trained here.
        layers_again: layers that compute their activations again here.
        seconds: at least, for the mix; None where the card is not known.
    """

    recipe: str
    mix: str | None
    least_bytes: int
    needed_bytes: int | None
    fits: bool
    layers_again: int
    seconds: float | None


def checks() -> Iterator[Check]:
    """Everything that is looked at, one after the other; what raises is a finding too."""
    parts: dict[str, Callable[[], Check]] = {
        "python": _python,
        "ixtune": _package,
        "torch": _torch,
        "gpu": _gpu,
        "bitsandbytes": _bitsandbytes,
        "libraries": _libraries,
        "memory": _memory,
        "disk": _disk,
        "hub": _hub,
        "released base": _released_base,
        "embedded base": _embedded_base,
    }
    for name, look in parts.items():
        try:
            yield look()
        except Exception as error:  # whatever an import or a driver raises is what is wrong
            reason = (str(error) or type(error).__name__).strip().splitlines()[0]
            hint = error.hint if isinstance(error, IxtuneError) else "install ixtune again, in a new environment"
            yield Check(name, "broken", f"{type(error).__name__}: {reason}", hint)


def trainable(gpu_gib: float | None = None) -> list[Trainable]:
    """What fits, by the plan of every shipped recipe on the mix in its head.

    Args:
        gpu_gib: memory of a GPU in place of the one that is here.
    """
    machine = gpus.detect(gpu_gib)
    return [_planned(found, machine) for found in shelf().values()]


def _planned(found: Shipped, machine: Machine) -> Trainable:
    from ixtune.checkpoint.sizes import Sizes
    from ixtune.planning.plan import make_plan

    chosen, mix = recipe.load(found.path), found.planned_with("--mix")
    if mix is None:  # the demo: a base of a few megabytes
        return Trainable(found.name, None, 0, None, True, 0, None)
    records = record_mixes.records_of(mix)
    # where nothing fits, the plan turns on all that saves memory
    least = make_plan(chosen, Sizes(), records, Machine("cuda", 1, "nothing")).memory.total
    if machine.device != "cuda":
        return Trainable(found.name, mix, least, None, False, 0, None)
    made = make_plan(chosen, Sizes(), records, machine)
    again = made.levers.checkpointed_layers
    return Trainable(found.name, mix, least, made.memory.total, bool(made.fits), again, made.seconds)


def _python() -> Check:
    found = f"{platform.python_version()} in {sys.prefix}"
    if _PYTHON[0] <= sys.version_info[:2] < _PYTHON[1]:
        return Check("python", "ok", found)
    return Check("python", "broken", found, "make an environment with Python 3.11 to 3.14")


def _package() -> Check:
    import ixtune

    where = f"{ixtune.__version__} in {Path(ixtune.__file__).parent}"
    try:
        asked = importlib.metadata.requires("ixtune") or []
    except importlib.metadata.PackageNotFoundError:
        return Check("ixtune", "note", f"{where}, not installed", "pip install . in its folder")
    from packaging.requirements import Requirement

    wrong = []
    for requirement in map(Requirement, asked):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    if wrong:
        return Check("ixtune", "broken", f"{where}: {'; '.join(wrong)}", "pip install . in its folder")
    return Check("ixtune", "ok", f"{where}, with all it asks for")


def _torch() -> Check:
    import torch

    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
    torch.ones(2, 2) @ torch.ones(2, 2)
    return Check("torch", "ok", f"{torch.__version__}, built {built}, {torch.get_num_threads()} threads")


def _gpu() -> Check:
    import torch

    if not torch.cuda.is_available():
        hint = "without a GPU only the embedded base is trained in reasonable time"
        if gpus.has_driver() and not torch.version.cuda:
            hint = "there is an NVIDIA driver, but torch is built for CPUs: install its CUDA build"
        elif gpus.has_driver():
            hint = "there is an NVIDIA driver that torch cannot use: `nvidia-smi` tells more"
        return Check("gpu", "note", "none that torch can use", hint)
    properties = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info(0)
    found = f"{properties.name}, {total / _GIB:.1f} GiB, {free / _GIB:.1f} of them free"
    others = torch.cuda.device_count() - 1
    found += f", and {others} more" if others else ""
    if properties.major < 8:
        return Check(
            "gpu", "note", f"{found}; without bf16", "recipes ask for bf16: cards from Ampere (2020) on have it"
        )
    if free < 0.9 * total:
        return Check("gpu", "note", found, "end what else uses it, or set training.gpu_gib")
    return Check("gpu", "ok", found)


def _bitsandbytes() -> Check:
    import torch
    from bitsandbytes.functional import dequantize_4bit

    from ixtune.model.nf4 import quantised

    weight = torch.randn(128, 256, generator=torch.Generator().manual_seed(0))
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        stored: Any = quantised(weight, device)
        back = dequantize_4bit(stored.data, stored.quant_state).cpu().float()
        lost = float((back - weight).norm() / weight.norm())
        if not lost < _NF4_LOSS:  # not a number is caught too
            hint = "install bitsandbytes again, for this version of CUDA"
            return Check("bitsandbytes", "broken", f"NF4 on {device} loses {lost:.0%} of a weight", hint)
    version = importlib.metadata.version("bitsandbytes")
    return Check("bitsandbytes", "ok", f"{version}; NF4 works on {' and '.join(devices)}")


def _libraries() -> Check:
    for name in _LIBRARIES:
        importlib.import_module(name)
    versions = [f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES]
    return Check("libraries", "ok", ", ".join(versions))


def _memory() -> Check:
    available = gpus.available_bytes()
    cores = f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
    if available is None:
        return Check("memory", "note", f"not known; {cores}", "the system does not say")
    found = f"{available / _GIB:.1f} GiB are free, {cores}"
    if available < 4 * _GIB:
        return Check(
            "memory", "note", found, "libraries and one shard of the base take about 4 GiB: end something else"
        )
    return Check("memory", "ok", found)


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    found = f"{free / _GIB:.1f} GiB are free in this folder"
    if free < _RUN_GIB * _GIB:
        return Check("disk", "note", found, f"a run with its checkpoints takes up to {_RUN_GIB} GiB: free some")
    return Check("disk", "ok", found)


def _hub() -> Check:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return Check("hub", "note", "not asked, because HF_HUB_OFFLINE is set", "unset it to download the base")
    if problem := _reach(constants.ENDPOINT):
        return Check("hub", "note", f"{constants.ENDPOINT} is not reached: {problem}", "give base=FOLDER where it is")
    return Check("hub", "ok", f"{constants.ENDPOINT} answers")


def _reach(address: str) -> str | None:
    """Why an address does not answer in time; None where it does. A thread, since looking up its name may hang."""
    outcome: list[str | None] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(address, method="HEAD", headers={"User-Agent": "ixtune doctor"})
            with urllib.request.urlopen(request, timeout=_HUB_TIMEOUT_S):
                outcome.append(None)
        except urllib.error.HTTPError:  # it answers, if only that it will not
            outcome.append(None)
        except (OSError, ValueError) as error:
            outcome.append(str(getattr(error, "reason", None) or error))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_HUB_TIMEOUT_S)
    return outcome[0] if outcome else f"no answer in {_HUB_TIMEOUT_S:g} s"


def _released_base() -> Check:
    from huggingface_hub import constants

    if folder := base.cached(base.HUB_ID):
        return Check("released base", "ok", f"whole, in {folder}")
    cache = Path(constants.HF_HUB_CACHE)
    there = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(there).free
    found = f"not in the hub cache ({cache}), where {free / 1e9:.0f} GB are free"
    if free < 1.1 * _BASE_GB * 1e9:
        return Check("released base", "note", found, f"it takes {_BASE_GB} GB: set HF_HOME to a larger disk")
    return Check("released base", "note", found, f"the first run downloads it ({_BASE_GB} GB), or give base=FOLDER")


def _embedded_base() -> Check:
    return Check("embedded base", "ok", str(base.resolve(base.NANO)))
