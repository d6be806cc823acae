"""Read a trained adapter in PEFT's file format, without peft.

Three kinds of tensors: low-rank pairs (`X.lora_A.weight` [R, in], `X.lora_B.weight` [out, R]) that are added to
the base's `X.weight`, with DoRA the magnitudes `X.lora_magnitude_vector` [out] that belong to them, and whole
tensors (the projector, the separators) that replace a base tensor. Anything else is refused by name: ignoring a part
of an adapter would silently give a wrong model.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ixtune.adapter.folder import CONFIG_FILE, RECORD_FILE, WEIGHTS_FILE, find_adapter
from ixtune.checkpoint.member import member_in
from ixtune.checkpoint.safetensors_file import TensorInfo
from ixtune.checkpoint.shards import Checkpoint, open_file
from ixtune.errors import IxtuneError
from ixtune.family import member_of, require_same
from ixtune.files import sha256_file

_PREFIX = "base_model.model."
_LOW_RANK = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_MAGNITUDE = ".lora_magnitude_vector"
# trained modules with other names in the checkpoint; ixtune.checkpoint.name_mapping has all, but needs transformers
ORIGINAL_NAMES = {"separators.glb": "plora_glb_GN", "separators.sub": "plora_sub_GN"}
# settings of PEFT's LoraConfig under which the update is not scale * B @ A added to the weight
_OTHER_ARITHMETIC = (
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "fan_in_fan_out",
    "alora_invocation_tokens",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
# the other initializations (pissa, olora, corda, loftq, ...) subtract something from the base first
_NEUTRAL_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
_COMPUTE_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}  # names in the recipe
_MERGEABLE = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True, slots=True)
class LowRank:
    """One low-rank update `scale * B @ A`, by the adapter's own tensor names."""

    a: str
    b: str
    scale: float


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """Complete, finite adapter of a supported kind; values stay on disk until they are read.

    Attributes:
        folder: The adapter folder.
        file: Its weights.
        low_rank: Original tensor name -> update to add.
        whole: Original tensor name -> adapter tensor that replaces it.
        magnitudes: Original tensor name -> length of each of its rows, with DoRA.
        record: The content of ixtune.json; empty for an adapter trained with another tool.
    """

    folder: Path
    file: Checkpoint
    low_rank: Mapping[str, LowRank]
    whole: Mapping[str, str]
    magnitudes: Mapping[str, str]
    record: Mapping[str, Any]

    def compute_dtype(self, stored: torch.dtype) -> torch.dtype:
        """Return the dtype of the base in training, or `stored` if it is not recorded."""
        recipe = self.record.get("recipe")
        training = recipe.get("training") if isinstance(recipe, dict) else None
        name = training.get("compute_dtype") if isinstance(training, dict) else None
        return _COMPUTE_DTYPES.get(str(name), stored)


def read_adapter(path: Path) -> AdapterWeights:
    """Read an adapter folder (or the run folder around it); refuse unsupported contents.

    The scale of a pair is alpha / rank, or alpha / sqrt(rank) with rank-stabilized LoRA (arXiv 2312.03732);
    `rank_pattern` and `alpha_pattern` are matched as PEFT matches them.

    Raises:
        IxtuneError: Something is missing, unknown, of the wrong rank, or not finite; the message names the
            tensor.
    """
    folder = find_adapter(path)
    config = _read_json(folder / CONFIG_FILE)
    _refuse_other_arithmetic(config, folder / CONFIG_FILE)
    file = open_file(folder / WEIGHTS_FILE)
    pairs: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    magnitudes: dict[str, str] = {}
    for key in file.by_name:
        name = key.removeprefix(_PREFIX)
        if match := _LOW_RANK.fullmatch(name):
            pairs.setdefault(match["module"], {})[match["side"]] = key
        elif name.endswith(_MAGNITUDE) and config.get("use_dora"):
            magnitudes[f"{name.removesuffix(_MAGNITUDE)}.weight"] = key
        elif _is_saved_whole(name, config.get("modules_to_save") or []):
            whole[ORIGINAL_NAMES.get(name, name)] = key
        else:
            raise _refuse(file, f"the adapter holds {key}, which is neither a low-rank pair nor a module to save")
    low_rank = {f"{module}.weight": _pair(module, sides, file, config) for module, sides in pairs.items()}
    if config.get("use_dora") and (odd := sorted(low_rank.keys() ^ magnitudes.keys())):
        raise _refuse(file, f"the adapter is DoRA, but {odd[0]} has no low-rank pair or no magnitude")
    if both := sorted(low_rank.keys() & whole.keys()):
        raise _refuse(file, f"the adapter both replaces {both[0]} and adds to it")
    if not (low_rank or whole):
        raise _refuse(file, "the adapter is empty")
    _refuse_not_finite(file)
    record = _read_json(folder / RECORD_FILE) if (folder / RECORD_FILE).is_file() else {}
    if record.get("adapter_sha256") not in (None, sha256_file(folder / WEIGHTS_FILE)):
        raise _refuse(file, f"the adapter's weights are not those that {RECORD_FILE} was written for")
    return AdapterWeights(folder, file, low_rank, whole, magnitudes, record)


def named_base(adapter: Path) -> str:
    """Return the base an adapter was trained on, as its recipe named it.

    Raises:
        IxtuneError: There is no adapter, or it names no base.
    """
    path = find_adapter(adapter) / RECORD_FILE
    base = _read_json(path).get("base") if path.is_file() else None
    if not isinstance(base, str):
        raise IxtuneError(
            "the adapter does not say which base it was trained on",
            where=str(path),
            hint="pass the base with --base: a folder, a hub id, or nano",
        )
    return base


def check_fit(adapter: AdapterWeights, base: Checkpoint, identity: str, *, force: bool) -> list[str]:
    """Check that the adapter belongs to this base, names, shapes and identity.

    Args:
        adapter: The adapter.
        base: The base to merge it into.
        identity: The base's identity, see `base_identity`.
        force: Whether another base of the same form is accepted, with a warning.

    Returns:
        Warnings, one line each.

    Raises:
        IxtuneError: A target is missing in the base or differs in shape, or the base is another one.
    """
    if adapter.record and (member := member_in(base.folder)) is not None:
        hint = "pass the base it was trained on with --base"
        require_same(member_of(adapter.record), member, "the adapter", str(adapter.folder), hint)
    for name, pair in adapter.low_rank.items():
        a, b = adapter.file.by_name[pair.a], adapter.file.by_name[pair.b]
        _check_target(adapter, base, name, (b.shape[0], a.shape[1]))
    for name, key in adapter.magnitudes.items():
        rows, found = base.by_name[name].shape[0], adapter.file.by_name[key].shape
        if found != (rows,):
            raise _refuse(adapter.file, f"{key} has the shape {list(found)}, but {name} has {rows} rows")
    for name, key in adapter.whole.items():
        _check_target(adapter, base, name, adapter.file.by_name[key].shape)
    trained_on = adapter.record.get("base_identity")
    if trained_on is None:
        return [f"the adapter does not say which base it was trained on (no base_identity in {RECORD_FILE})"]
    if trained_on == identity:
        return []
    if not force:
        raise IxtuneError(
            f"the adapter was trained on another base: {str(trained_on)[:12]}, this one is {identity[:12]}",
            where=str(base.folder),
            hint="pass the base it was trained on with --base, or --force to merge into this one",
            notes=(f"trained on {trained_on}", f"this base {identity}"),
        )
    return [f"forced: trained on the base {str(trained_on)[:12]}, merged into {identity[:12]}"]


def _check_target(adapter: AdapterWeights, base: Checkpoint, name: str, shape: tuple[int, ...]) -> None:
    target: TensorInfo | None = base.by_name.get(name)
    if target is None:
        raise IxtuneError(
            f"the adapter changes {name}, which the base does not have",
            where=str(base.folder),
            hint="pass the base the adapter was trained on",
        )
    if target.shape != shape:
        raise IxtuneError(
            f"{name} has the shape {list(shape)} in the adapter and {list(target.shape)} in the base",
            where=str(adapter.folder),
            hint="pass the base the adapter was trained on",
        )
    if target.dtype not in _MERGEABLE:
        raise IxtuneError(
            f"nothing can be merged into {name}, stored as {str(target.dtype).removeprefix('torch.')}",
            where=str(base.folder),
            hint="pass the base in bfloat16, float16 or float32",
        )


def _pair(module: str, sides: dict[str, str], file: Checkpoint, config: Mapping[str, Any]) -> LowRank:
    """Check one pair's shapes against each other and the configured rank, and work out its scale."""
    if len(sides) == 1:
        (side,) = sides
        raise _refuse(file, f"{module} has lora_{side} but not lora_{'B' if side == 'A' else 'A'}")
    a, b = file.by_name[sides["A"]], file.by_name[sides["B"]]
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise _refuse(file, f"{module}: lora_A {list(a.shape)} and lora_B {list(b.shape)} must be matrices")
    rank = _by_pattern(config.get("rank_pattern"), module, config.get("r"))
    alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    if not (isinstance(rank, int) and rank > 0 and isinstance(alpha, int | float) and math.isfinite(alpha)):
        raise IxtuneError(
            f"rank {rank!r} and alpha {alpha!r} give no scale for {module}",
            where=str(file.folder / CONFIG_FILE),
            hint="copy the adapter again",
        )
    if (a.shape[0], b.shape[1]) != (rank, rank):
        raise _refuse(
            file,
            f"{module}: lora_A {list(a.shape)} and lora_B {list(b.shape)}, but rank {rank} in {CONFIG_FILE}",
        )
    return LowRank(sides["A"], sides["B"], alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Return the value of the first pattern that matches the end of the module path (PEFT 0.21, get_pattern_key)."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _is_saved_whole(name: str, modules_to_save: list[str]) -> bool:
    """Return whether the tensor belongs to a module that PEFT trained and saved whole."""
    if name in ORIGINAL_NAMES.values():  # PEFT 0.21 may apply the model's renaming to its keys (TRAPS.md 14c)
        return "separators" in modules_to_save
    return any(f".{module}." in f".{name}" for module in modules_to_save)


def _refuse_other_arithmetic(config: Mapping[str, Any], path: Path) -> None:
    if config.get("peft_type") != "LORA":
        raise _not_plain(path, f"the adapter is of the type {config.get('peft_type')}")
    if used := [setting for setting in _OTHER_ARITHMETIC if config.get(setting)]:
        raise _not_plain(path, f"the adapter uses {', '.join(used)}")
    if (start := config.get("init_lora_weights", True)) not in _NEUTRAL_STARTS:
        raise _not_plain(path, f"the adapter was initialized with {start!r}, which changes the base")


def _not_plain(path: Path, what: str) -> IxtuneError:
    return IxtuneError(
        f"{what}: only plain LoRA can be merged here",
        where=str(path),
        hint="merge it with the tool that made it",
    )


def _refuse_not_finite(file: Checkpoint) -> None:
    for name, info in file.by_name.items():
        for start, stop in info.row_blocks():
            if not all_finite(file.read_rows(name, start, stop)):
                raise IxtuneError(
                    f"the adapter's {name} holds NaN or infinity",
                    where=str(file.folder),
                    hint="its training diverged: use an earlier checkpoint, or a lower learning rate",
                )


def all_finite(tensor: torch.Tensor) -> bool:
    """Return whether all elements are finite.

    If an element is not finite, neither is the sum, which is much cheaper than checking every element; that is done
    only if the sum is infinite.
    """
    return bool(torch.isfinite(tensor.sum(dtype=torch.float32))) or bool(torch.isfinite(tensor).all())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise IxtuneError(f"the file cannot be read: {error.strerror}", where=str(path), hint="check it") from error
    except ValueError as error:
        raise IxtuneError("the file is not JSON", where=str(path), hint="copy the adapter again") from error
    if not isinstance(content, dict):
        raise IxtuneError("the file is not a JSON object", where=str(path), hint="copy the adapter again")
    return content


def _refuse(file: Checkpoint, what: str) -> IxtuneError:
    return IxtuneError(what, where=str(file.folder / WEIGHTS_FILE), hint="copy or export the adapter again")
