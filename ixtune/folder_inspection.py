"""Describe and check a folder: an adapter, a run, a checkpoint, a merged model or a prepared set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ixtune import base as bases
from ixtune.adapter.folder import CONFIG_FILE, RECORD_FILE, WEIGHTS_FILE
from ixtune.adapter.inspect import by_part, changes_of, inspect_adapter
from ixtune.adapter.weights import AdapterWeights, read_adapter
from ixtune.checkpoint.identity import base_identity
from ixtune.checkpoint.shards import open_checkpoint
from ixtune.data.prepared import store
from ixtune.data.prepared.manifest import MANIFEST, roots_of
from ixtune.errors import IxtuneError
from ixtune.files import sha256_file
from ixtune.training.state import checkpoints

_REPORT = "merge_report.json"
_ADAPTER = "adapter"


@dataclass(slots=True)
class Found:
    """Description of a folder, and what its check found.

    Attributes:
        kind: adapter, run, checkpoint, merged model or prepared set.
        path: The folder.
        facts: Facts by name, in the order to print.
        checks: Checks that passed, in words.
        damage: Checks that failed, in words.
        adapter: Updates and effect of the adapter, if there is one.
    """

    kind: str
    path: str
    facts: dict[str, Any] = field(default_factory=dict)
    checks: list[str] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    adapter: dict[str, Any] | None = None

    @property
    def whole(self) -> bool:
        """Return whether no check failed."""
        return not self.damage

    def as_json(self) -> dict[str, Any]:
        """Return all findings as a JSON-serializable dict."""
        return {"whole": self.whole, **asdict(self)}


def inspect(path: Path, base: str | None = None) -> Found:
    """Describe and check a folder.

    Args:
        path: Folder written by `ixtune prepare`, `train`, `merge` or `export`, or a part of one.
        base: Base to compare the changes of an adapter with.

    Raises:
        IxtuneError: It is not such a folder, or an adapter that cannot be read.
    """
    if not path.is_dir():
        what = "this is a file, not a folder" if path.exists() else "there is no such folder"
        raise IxtuneError(what, where=str(path), hint="pass a folder that an ixtune command wrote")
    if (path / checkpoints.SUMS).is_file():
        found = _checkpoint(path)
    elif (path / WEIGHTS_FILE).is_file() or (path / CONFIG_FILE).is_file():
        found = _adapter(path)
    elif (path / _ADAPTER).is_dir() or checkpoints.listing(path):
        found = _run(path)
    elif (path / MANIFEST).is_file():
        found = _prepared(path)
    elif _record(path).get("kind") in ("merged", "exported") or (path / _REPORT).is_file():
        found = _merged(path)
    elif (path / "config.json").is_file():
        raise IxtuneError("this looks like a base", where=str(path), hint=f"run: ixtune base info {path}")
    else:
        raise IxtuneError(
            "not an adapter, run, checkpoint, merged model or prepared set",
            where=str(path),
            hint="pass a folder that ixtune prepare, train, merge or export wrote",
        )
    holder = {"run": path / _ADAPTER}.get(found.kind, path)
    if (holder / WEIGHTS_FILE).is_file() and found.whole:
        found.adapter = _updates(read_adapter(holder), base)
    elif base is not None:
        raise IxtuneError("no adapter to compare with a base", where=str(path), hint="leave out --base")
    return found


def _adapter(folder: Path) -> Found:
    weights = read_adapter(folder)  # raises for truncated, altered, unknown or non-finite tensors, by name
    found = Found("adapter", str(folder), _facts_of_adapter(weights))
    if "adapter_sha256" in weights.record:
        found.checks.append(f"{WEIGHTS_FILE}: SHA-256 as in {RECORD_FILE}")
    found.checks.append("all tensors known and finite")
    return found


def _run(folder: Path) -> Found:
    found = Found("run", str(folder))
    if (folder / _ADAPTER).is_dir():
        finished = _adapter(folder / _ADAPTER)
        found.facts, found.checks = finished.facts, finished.checks
    else:
        found.facts["state"] = "not finished: resume with `ixtune train … --resume`"
    kept = checkpoints.listing(folder)
    found.facts["checkpoints"] = ", ".join(str(checkpoints.step_of(one)) for one in kept) or "none"
    for one in kept:
        if problem := checkpoints.damage(one):
            found.damage.append(f"{one.name}: {problem}; resume uses the one before it, delete this one")
        else:
            found.checks.append(f"{one.name}: checksums match")
    best = _json(folder / checkpoints.BEST)
    if best:
        found.facts["best step"] = best.get("step")
    return found


def _checkpoint(folder: Path) -> Found:
    found = Found("checkpoint", str(folder))
    if problem := checkpoints.damage(folder):
        found.damage.append(f"{problem}; resume uses the checkpoint before it, delete this one")
        return found
    found.checks.append("checksums match")
    progress, state = _json(folder / "progress.json"), _json(folder / "trainer_state.json")
    found.facts |= {
        "step": f"{state.get('global_step')} of {state.get('max_steps')}",
        "epoch": state.get("epoch"),
        "tokens": progress.get("tokens"),
        "seconds": progress.get("seconds"),
        "repeatable": "bit for bit" if progress.get("reproducible") else "no: a pack was split when memory ran out",
    }
    return found


def _merged(folder: Path) -> Found:
    record, report = _record(folder), _json(folder / _REPORT)
    found = Found("merged model", str(folder))
    model = open_checkpoint(folder)
    size = f"{len(model.by_name):,} tensors, {sum(info.nbytes for info in model.tensors) / 2**30:.2f} GiB"
    facts = {
        "base": record.get("base"),
        "merged onto": record.get("onto", report.get("onto")),
        "adapters": len(record.get("adapters", ())) or None,
        "hd_num": record.get("hd_num"),
        "size": size,
        "changed tensors": report.get("changed"),
    }
    found.facts = {name: value for name, value in facts.items() if value is not None}
    for name, wanted in report.get("file_sha256", {}).items():
        if not (folder / name).is_file():
            found.damage.append(f"{name} is missing; copy the folder again, or merge again")
        elif sha256_file(folder / name) != wanted:
            found.damage.append(f"{name} has changed since the merge; copy the folder again, or merge again")
        else:
            found.checks.append(f"{name}: SHA-256 as in {_REPORT}")
    wanted = record.get("merged_identity", report.get("merged_identity"))
    if not report.get("file_sha256") and wanted:  # an export in another form keeps no hash of each file
        if base_identity(model) == wanted:
            found.checks.append("identity of the weights as recorded (the edges of every tensor)")
        else:
            found.damage.append("the weights are not those that were merged; merge again")
    return found


def _prepared(folder: Path) -> Found:
    found = Found("prepared set", str(folder))
    splits = sorted(one.parent.name for one in folder.glob(f"*/{MANIFEST}"))
    for part in [folder / split for split in splits] or [folder]:
        name = f"{part.name}: " if splits else ""
        fingerprint = _json(part / "state.json").get("_fingerprint")
        if (part / store.ARROW).is_file() and not sha256_file(part / store.ARROW).startswith(str(fingerprint)):
            found.damage.append(f"{name}{store.ARROW} has changed since it was prepared; prepare the data again")
            continue
        manifest = store.load(part).manifest
        found.checks.append(f"{name}{store.ARROW}: SHA-256 begins with {fingerprint}, as in state.json")
        records, options = manifest["records"], manifest["options"]
        found.facts |= {
            f"{name}records": f"{records['rows']:,} ({records['read']:,} read, {records['rejected']:,} rejected)",
            f"{name}tokens": f"{manifest['tokens']['total']:,}, of them {manifest['tokens']['image']:,} of images "
            f"and {manifest['tokens']['supervised']:,} supervised",
            f"{name}longest record": f"{manifest['length']['max']:,} tokens",
            f"{name}hd_num": options["hd_num"],
            f"{name}sources": ", ".join(str(source["path"]) for source in manifest["sources"]),
        }
        gone = [root for root in roots_of(manifest, part) if not root.is_dir()]
        found.damage += [f"{name}the images' folder {root} is gone; put it back, or prepare again" for root in gone]
    return found


def _facts_of_adapter(weights: AdapterWeights) -> dict[str, Any]:
    record = weights.record
    recipe, data = (_mapping(record.get(name)) for name in ("recipe", "data"))
    config = _json(weights.folder / CONFIG_FILE)
    trained = sum(_count(info.shape) for info in weights.file.tensors)
    projector = [name for name in (*weights.low_rank, *weights.whole) if name.startswith("vision_proj")]
    form = "frozen" if not projector else "full" if projector[0] in weights.whole else "LoRA"
    linears = sorted({name.split(".")[-2] for name in weights.low_rank if not name.startswith("vision_proj")})
    kind = "DoRA" if weights.magnitudes else "rsLoRA" if config.get("use_rslora") else "LoRA"
    facts = {
        "base": record.get("base"),
        "form of the base": record.get("quantize"),
        "kind": f"{kind}, rank {config.get('r')}, alpha {config.get('lora_alpha')}",
        "linears": " ".join(linears) or "none",
        "layers": _mapping(recipe.get("adapter")).get("layers"),
        "started from": ", then ".join(str(one.get("adapter")) for one in record.get("ancestors") or ()) or None,
        "projector": form,
        "separators": "trained" if any("plora_" in name for name in weights.whole) else "frozen",
        "trained parameters": f"{trained:,}",
        "hd_num": record.get("hd_num"),
        "step": record.get("steps"),
        "records": data.get("records"),
        "loss": record.get("loss"),
        "validation loss": record.get("validation_loss"),
        **{f"validation {name}": value for name, value in _mapping(record.get("validation_scores")).items()},
        "best by": record.get("best_by"),
        "learning rate": _mapping(recipe.get("training")).get("learning_rate"),
        "made by": f"ixtune {record['ixtune_version']}" if "ixtune_version" in record else "another tool",
    }
    return {name: value for name, value in facts.items() if value is not None}


def _updates(weights: AdapterWeights, base: str | None) -> dict[str, Any]:
    """Return norms and effective ranks, and with a base the relative change of its weights."""
    looked = inspect_adapter(weights.folder)
    changes = changes_of(weights, open_checkpoint(bases.resolve(base))) if base else {}
    return {
        "updates": [{**asdict(one), "change": asdict(changes[one.name]) if base else None} for one in looked.updates],
        "whole": [
            {"name": name, "shape": list(shape), "change": asdict(changes[name]) if base else None}
            for name, shape in looked.whole.items()
        ],
        "parts": by_part(looked.updates),
        "has_effect": looked.has_effect,
    }


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _record(folder: Path) -> dict[str, Any]:
    return _json(folder / RECORD_FILE)


def _json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty if there is no such file.

    Raises:
        IxtuneError: The file exists and cannot be read.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise IxtuneError(
            f"{path.name} cannot be read", where=str(path), hint="the file is damaged; copy the folder again"
        ) from error
    return content if isinstance(content, dict) else {}
