"""Check this machine and list what it can train. Installs, loads and downloads nothing."""

from __future__ import annotations

import importlib
import importlib.metadata
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

from ixtune import base, platforms
from ixtune.errors import IxtuneError
from ixtune.planning import gpus, record_mixes
from ixtune.planning.gpus import Machine
from ixtune.recipe import recipe
from ixtune.recipe.shipped_recipes import Shipped, shipped_by_name

_GIB = 2**30
_PYTHON = ((3, 11), (3, 15))  # from, and before
_LIBRARIES = ("transformers", "peft", "trl", "datasets", "accelerate")
_BASE_GB = 17.2
_RUN_GIB = 5  # space for checkpoints with optimizer state, and for a prepared set
_HUB_TIMEOUT_S = 4.0
_NF4_LOSS = 0.15  # relative error; 0.09 for normally distributed weights


@dataclass(frozen=True, slots=True)
class MachineCheck:
    """Result of one check.

    Attributes:
        name: Name of the part that was checked.
        state: `ok`, `note` (works with a limit) or `broken` (training cannot work).
        found: What was found, in one line.
        hint: What to do if it is not ok.
    """

    name: str
    state: Literal["ok", "note", "broken"]
    found: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Trainable:
    """Plan of a shipped recipe.

    Attributes:
        recipe: Name of the recipe.
        mix: Made-up records it is planned on; None for the embedded base, which runs anywhere.
        least_bytes: Minimum GPU memory.
        needed_bytes: Memory it would take here; None without a GPU.
        fits: Whether it can be trained here.
        layers_again: Number of checkpointed layers.
        seconds: Lower bound of the time for the mix; None for an unknown card.
    """

    recipe: str
    mix: str | None
    least_bytes: int
    needed_bytes: int | None
    fits: bool
    layers_again: int
    seconds: float | None


def checks() -> Iterator[MachineCheck]:
    """Yield the result of every check; an exception is a result too."""
    parts: dict[str, Callable[[], MachineCheck]] = {
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
        except Exception as error:  # whatever an import or a driver raises is the finding
            reason = (str(error) or type(error).__name__).strip().splitlines()[0]
            hint = error.hint if isinstance(error, IxtuneError) else "reinstall ixtune in a new environment"
            yield MachineCheck(name, "broken", f"{type(error).__name__}: {reason}", hint)


def trainable(gpu_gib: float | None = None) -> list[Trainable]:
    """Plan every shipped recipe on the mix named in its header.

    Args:
        gpu_gib: GPU memory in GiB to plan for; by default the GPU here.
    """
    machine = gpus.detect(gpu_gib)
    return [_planned(found, machine) for found in shipped_by_name().values()]


def _planned(found: Shipped, machine: Machine) -> Trainable:
    from ixtune.checkpoint.sizes import Sizes
    from ixtune.family import FOUR_KHD, member_of_hub_id
    from ixtune.planning.plan import make_plan

    chosen, mix = recipe.load(found.path), found.planned_with("--mix")
    if mix is None:  # the demo: a base of a few megabytes
        return Trainable(found.name, None, 0, None, True, 0, None)
    sizes = Sizes.released(member_of_hub_id(chosen.base) or FOUR_KHD)
    records = record_mixes.records_of(mix, sizes.member)
    # if nothing fits, the plan turns on everything that saves memory
    least = make_plan(chosen, sizes, records, Machine("cuda", 1, "nothing")).memory.total
    if machine.device != "cuda":
        return Trainable(found.name, mix, least, None, False, 0, None)
    made = make_plan(chosen, sizes, records, machine)
    again = made.saving.checkpointed_layers
    return Trainable(found.name, mix, least, made.memory.total, bool(made.fits), again, made.seconds)


def _python() -> MachineCheck:
    found = f"{platform.python_version()} in {sys.prefix}"
    if _PYTHON[0] <= sys.version_info[:2] < _PYTHON[1]:
        return MachineCheck("python", "ok", found)
    return MachineCheck("python", "broken", found, "create an environment with Python 3.11 to 3.14")


def _package() -> MachineCheck:
    import ixtune

    where = f"{ixtune.__version__} in {Path(ixtune.__file__).parent}"
    try:
        asked = importlib.metadata.requires("ixtune") or []
    except importlib.metadata.PackageNotFoundError:
        return MachineCheck("ixtune", "note", f"{where}, not installed", "run pip install . in its folder")
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
        return MachineCheck("ixtune", "broken", f"{where}: {'; '.join(wrong)}", "run pip install . in its folder")
    return MachineCheck("ixtune", "ok", f"{where}, all requirements installed")


def _torch() -> MachineCheck:
    import torch

    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
    torch.ones(2, 2) @ torch.ones(2, 2)
    return MachineCheck("torch", "ok", f"{torch.__version__}, built {built}, {torch.get_num_threads()} threads")


def _gpu() -> MachineCheck:
    import torch

    if not torch.cuda.is_available():
        hint = "without a GPU, train the embedded base only"
        if platforms.has_nvidia_driver() and not torch.version.cuda:
            hint = "there is an NVIDIA driver, but torch is built for CPUs: install torch's CUDA build"
        elif platforms.has_nvidia_driver():
            hint = "torch cannot use the NVIDIA driver: run `nvidia-smi` for details"
        return MachineCheck("gpu", "note", "none that torch can use", hint)
    properties = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info(0)
    found = f"{properties.name}, {total / _GIB:.1f} GiB, {free / _GIB:.1f} GiB free"
    others = torch.cuda.device_count() - 1
    found += f", and {others} more" if others else ""
    if properties.major < 8:
        return MachineCheck(
            "gpu", "note", f"{found}; without bf16", "recipes use bf16: use a card from Ampere (2020) or later"
        )
    if free < 0.9 * total:
        return MachineCheck("gpu", "note", found, "close other programs that use it, or set training.gpu_gib")
    return MachineCheck("gpu", "ok", found)


def _bitsandbytes() -> MachineCheck:
    import torch
    from bitsandbytes.functional import dequantize_4bit

    from ixtune.model.nf4 import quantized

    weight = torch.randn(128, 256, generator=torch.Generator().manual_seed(0))
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        stored: Any = quantized(weight, device)
        back = dequantize_4bit(stored.data, stored.quant_state).cpu().float()
        lost = float((back - weight).norm() / weight.norm())
        if not lost < _NF4_LOSS:  # also catches NaN
            hint = "reinstall bitsandbytes for this version of CUDA"
            return MachineCheck("bitsandbytes", "broken", f"NF4 on {device} loses {lost:.0%} of a weight", hint)
    version = importlib.metadata.version("bitsandbytes")
    return MachineCheck("bitsandbytes", "ok", f"{version}; NF4 works on {' and '.join(devices)}")


def _libraries() -> MachineCheck:
    for name in _LIBRARIES:
        importlib.import_module(name)
    versions = [f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES]
    return MachineCheck("libraries", "ok", ", ".join(versions))


def _memory() -> MachineCheck:
    available = platforms.available_bytes()
    cores = f"{platforms.cores()} cores"
    if available is None:
        return MachineCheck("memory", "note", f"unknown; {cores}", "the system does not report it")
    found = f"{available / _GIB:.1f} GiB free, {cores}"
    if available < 4 * _GIB:
        return MachineCheck(
            "memory", "note", found, "the libraries and one shard of the base take about 4 GiB: close other programs"
        )
    return MachineCheck("memory", "ok", found)


def _disk() -> MachineCheck:
    free = shutil.disk_usage(Path.cwd()).free
    found = f"{free / _GIB:.1f} GiB free in this folder"
    if free < _RUN_GIB * _GIB:
        return MachineCheck(
            "disk", "note", found, f"a run with its checkpoints takes up to {_RUN_GIB} GiB: free some space"
        )
    return MachineCheck("disk", "ok", found)


def _hub() -> MachineCheck:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return MachineCheck("hub", "note", "not checked: HF_HUB_OFFLINE is set", "unset it to download the base")
    if problem := _reach(constants.ENDPOINT):
        return MachineCheck(
            "hub", "note", f"{constants.ENDPOINT} cannot be reached: {problem}", "use a checkpoint folder: base=FOLDER"
        )
    return MachineCheck("hub", "ok", f"{constants.ENDPOINT} answers")


def _reach(address: str) -> str | None:
    """Return why an address does not answer in time, or None. Uses a thread, because a name lookup may hang."""
    outcome: list[str | None] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(address, method="HEAD", headers={"User-Agent": "ixtune doctor"})
            with urllib.request.urlopen(request, timeout=_HUB_TIMEOUT_S):
                outcome.append(None)
        except urllib.error.HTTPError:  # an error status is an answer too
            outcome.append(None)
        except (OSError, ValueError) as error:
            outcome.append(str(getattr(error, "reason", None) or error))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_HUB_TIMEOUT_S)
    return outcome[0] if outcome else f"no answer in {_HUB_TIMEOUT_S:g} s"


def _released_base() -> MachineCheck:
    from huggingface_hub import constants

    if folder := base.cached(base.HUB_ID):
        return MachineCheck("released base", "ok", f"complete, in {folder}")
    cache = Path(constants.HF_HUB_CACHE)
    there = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(there).free
    found = f"not in the hub cache ({cache}; {free / 1e9:.0f} GB free)"
    if free < 1.1 * _BASE_GB * 1e9:
        return MachineCheck(
            "released base", "note", found, f"it takes {_BASE_GB} GB: set HF_HOME to a folder on a larger disk"
        )
    return MachineCheck(
        "released base",
        "note",
        found,
        f"the first run downloads it ({_BASE_GB} GB); or use a checkpoint folder: base=FOLDER",
    )


def _embedded_base() -> MachineCheck:
    return MachineCheck("embedded base", "ok", str(base.resolve(base.NANO)))
