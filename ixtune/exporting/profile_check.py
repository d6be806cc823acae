"""Check an exported folder against its profile: files, keys, shapes, configuration, and loading if possible.

The checks run after every export, and again with `ixtune export --check DIR`, also on another machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ixtune.adapter import profiles
from ixtune.adapter.folder import CONFIG_FILE
from ixtune.adapter.weights import read_adapter
from ixtune.checkpoint.convert import hash_of
from ixtune.checkpoint.shards import open_checkpoint
from ixtune.checkpoint.sizes import Sizes
from ixtune.checkpoint.tensor_shapes import tensor_shapes
from ixtune.checkpoint.verify import read_config_json, verify
from ixtune.errors import IxtuneError
from ixtune.exporting import nf4_shards, peft_original
from ixtune.exporting.original_code import code_files
from ixtune.family import MEMBERS
from ixtune.model import stored_nf4

REPORT_FILE = "export_report.json"
BASE_CONFIG_FILE = "base_config.json"  # next to an adapter, so that its shapes can be checked without the base
_ORIGINAL_CLASS = "InternLMXComposer2ForCausalLM"
_RUN_KEYS = ("attn_implementation", "max_length")


@dataclass(frozen=True, slots=True)
class ProfileCheck:
    """Result of one check: its name, whether it passed, and what was found."""

    what: str
    passed: bool
    found: str


def checks_of(folder: Path, profile: str) -> list[ProfileCheck]:
    """Run all checks of a profile on an exported folder.

    Raises:
        IxtuneError: A file is missing or damaged.
    """
    checks: dict[str, Callable[[Path], Iterator[ProfileCheck]]] = {
        "peft-original": _peft_original,
        "transformers": _transformers,
        "original": _original,
        "lmdeploy-0.13": _lmdeploy,
        "nf4": _nf4,
    }
    return list(checks[profile](folder))


def check_folder(folder: Path, advance: Callable[[int], None] | None = None) -> tuple[str, list[ProfileCheck]]:
    """Check a folder that was exported before: the checks of its profile, and the hash of every file.

    Args:
        folder: Exported folder.
        advance: Callback with the bytes hashed.

    Returns:
        (its profile, what was found)

    Raises:
        IxtuneError: It was not exported by ixtune, or cannot be read.
    """
    report = read_report(folder)
    profile = profiles.profile_named(str(report["profile"])).name
    differing = []
    for name, sha256 in report["file_sha256"].items():
        path = folder / Path(name).name
        if not path.is_file():
            differing.append(f"{name} is missing")
        elif hash_of(path, advance) != sha256:
            differing.append(f"{name} has changed")
    checks = [
        ProfileCheck("hashes", not differing, "; ".join(differing) or f"{len(report['file_sha256'])} files as exported")
    ]
    try:
        checks += checks_of(folder, profile)
    except IxtuneError as error:
        checks.append(ProfileCheck("reading", False, str(error)))
    return profile, checks


def read_report(folder: Path) -> dict[str, Any]:
    """Read the report of an exported folder.

    Raises:
        IxtuneError: There is none.
    """
    path = folder / REPORT_FILE
    try:
        report = json.loads(path.read_bytes())
        known = isinstance(report["profile"], str) and isinstance(report["file_sha256"], dict)
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise IxtuneError(
            f"no readable {REPORT_FILE}: this folder was not exported by ixtune",
            where=str(folder),
            hint="pass a folder written by `ixtune export --out`; for a base, use `ixtune base verify`",
        )
    return dict(report)


def _peft_original(folder: Path) -> Iterator[ProfileCheck]:
    config = json.loads((folder / CONFIG_FILE).read_bytes())
    strange = sorted(config.keys() - peft_original.KNOWN_KEYS)
    yield ProfileCheck(
        "adapter_config.json", not strange, f"unknown to peft 0.10: {strange}" if strange else "only known keys"
    )
    adapter = read_adapter(folder)
    separators = [name for name in adapter.whole if name.startswith("plora_")]
    yield ProfileCheck("separators", not separators, ", ".join(separators) or "none, peft 0.10 could not load them")
    known = tensor_shapes(Sizes.from_config_json(json.loads((folder / BASE_CONFIG_FILE).read_bytes())))
    wrong = []
    for name, pair in adapter.low_rank.items():
        a, b = adapter.file.by_name[pair.a].shape, adapter.file.by_name[pair.b].shape
        if known.get(name) != (b[0], a[1]):
            wrong.append(name)
    wrong += [name for name, key in adapter.whole.items() if known.get(name) != adapter.file.by_name[key].shape]
    found = ", ".join(wrong[:4]) or f"{len(adapter.low_rank)} pairs and {len(adapter.whole)} whole tensors fit the base"
    yield ProfileCheck("keys and shapes", not wrong, found)
    listed = set(config["target_modules"])
    modules = {name.removesuffix(".weight") for name in adapter.low_rank}
    yield ProfileCheck("target_modules", listed == modules, f"{len(listed)} modules by their full names")


def _original(folder: Path) -> Iterator[ProfileCheck]:
    yield from _whole(folder)
    config = read_config_json(folder)
    present, missing = code_files(folder)
    if config.get("auto_map"):
        found = (
            f"missing: {', '.join(missing)}" if missing else f"{', '.join(present)}; copied as bytes, never run here"
        )
        yield ProfileCheck("code", not missing, found)
    else:
        yield ProfileCheck("code", True, "config.json names none: only ixtune loads this model")
    yield ProfileCheck("config.json", "quantization_config" not in config, "the base's own")


def _lmdeploy(folder: Path) -> Iterator[ProfileCheck]:
    yield from _original(folder)
    yield from recognized_by_lmdeploy(folder)


def recognized_by_lmdeploy(folder: Path) -> Iterator[ProfileCheck]:
    """Check whether lmdeploy 0.13 recognizes a folder as this model, from the files that it reads."""
    config = read_config_json(folder)
    names = [*(config.get("architectures") or [""])[:1], *map(str, (config.get("auto_map") or {}).values())]
    yield ProfileCheck(
        "recognized by lmdeploy",
        any(_ORIGINAL_CLASS in name for name in names),
        f"{_ORIGINAL_CLASS} must be named by architectures or auto_map of config.json",
    )
    transform = folder / "ixc_utils.py"
    text = transform.read_text(encoding="utf-8", errors="replace") if transform.is_file() else ""
    member = Sizes.from_config_json(config).member
    # the first existing one decides, in the order of lmdeploy/vl/model/xcomposer2.py of 0.13
    names = [one.lmdeploy_function for one in reversed(MEMBERS.values())]
    found = next((name for name in names if f"def {name}" in text), None)
    others = names[: names.index(member.lmdeploy_function)]
    yield ProfileCheck(
        f"recognized as {member.title.rpartition('-')[2]}",
        found == member.lmdeploy_function,
        f"ixc_utils.py must define {member.lmdeploy_function}" + (f" and not {others[0]}" if others else ""),
    )


def _transformers(folder: Path) -> Iterator[ProfileCheck]:
    yield from _whole(folder)
    yield from _ours(folder)


def _nf4(folder: Path) -> Iterator[ProfileCheck]:
    config = read_config_json(folder)
    sizes = Sizes.from_config_json(config)
    checkpoint = open_checkpoint(folder)
    notes = stored_nf4.check(checkpoint, sizes)
    counted = f"{len(stored_nf4.linears(sizes))} decoder linears in NF4, {checkpoint.nbytes / 2**20:,.1f} MiB in all"
    yield ProfileCheck("tensors", not notes, "; ".join(notes[:4]) or counted)
    skipped = set((config.get("quantization_config") or {}).get("llm_int8_skip_modules", ()))
    wanted = set(nf4_shards.linears_in_16_bits(sizes))
    yield ProfileCheck("quantization_config", skipped == wanted, f"{len(skipped)} linears named that stay in 16 bits")
    yield from _ours(folder)


def _ours(folder: Path) -> Iterator[ProfileCheck]:
    """Load configuration and processor with transformers and our classes, as the consumer does, without the weights."""
    from transformers import AutoConfig, AutoProcessor

    from ixtune.model.configuration import IXC2Config

    config = read_config_json(folder)
    left = [key for key in _RUN_KEYS if key in config]
    found = type(AutoConfig.from_pretrained(folder))
    yield ProfileCheck("AutoConfig", found is IXC2Config and not left, f"resolves to {found.__name__}")
    present, missing = code_files(folder)
    strange = sorted({file.name for file in folder.glob("*.py")} - set(present))
    notes = [f"missing: {name}" for name in missing] + [f"not part of it: {name}" for name in strange]
    yield ProfileCheck(
        "code", not notes, "; ".join(notes) or f"{len(present)} files, used where ixtune is not installed"
    )
    processor = AutoProcessor.from_pretrained(folder)
    yield ProfileCheck("AutoProcessor", True, f"resolves to {type(processor).__name__}")


def _whole(folder: Path) -> Iterator[ProfileCheck]:
    found = verify(folder, hashes=False)
    lines = [f"{kind}: {line}" for kind, lines in found.findings.items() for line in lines]
    yield ProfileCheck(
        "tensors", not lines, "; ".join(lines[:4]) or f"{found.tensors} of {found.expected}, {found.form}"
    )
