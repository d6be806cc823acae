"""Write an adapter in the form that one consumer loads, and check it against that consumer's needs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import ixtune
from ixtune.adapter import card
from ixtune.adapter.folder import CONFIG_FILE, RECORD_FILE, WEIGHTS_FILE
from ixtune.adapter.profiles import Profile, profile_named
from ixtune.adapter.weights import (
    AdapterWeights,
    check_fit,
    read_adapter,
)
from ixtune.checkpoint.convert import Progress, carry, counter, hashes_of, require_space
from ixtune.checkpoint.identity import base_identity
from ixtune.checkpoint.member import completed
from ixtune.checkpoint.shards import open_checkpoint
from ixtune.checkpoint.sizes import Sizes
from ixtune.checkpoint.terms import terms_of
from ixtune.checkpoint.verify import read_config_json
from ixtune.data.generation_file import GENERATION_FILE
from ixtune.data.processor_files import write_processor_files
from ixtune.errors import IxtuneError
from ixtune.exporting import nf4_shards, peft_original, standalone
from ixtune.exporting.original_code import code_files, require_code
from ixtune.exporting.profile_check import (
    BASE_CONFIG_FILE,
    REPORT_FILE,
    ProfileCheck,
    checks_of,
    recognized_by_lmdeploy,
)
from ixtune.family import Member, member_of
from ixtune.files import atomic_folder, atomic_write_json, sha256_file
from ixtune.merging.merge import REPORT_FILE as MERGE_REPORT_FILE
from ixtune.merging.merge import merge
from ixtune.merging.merge_plan import Onto

_SPARE_BYTES = 64 << 20
# Run-time keys in the original's config.json, which transformers would follow or refuse (TRAPS.md 20).
_DROPPED_KEYS = ("auto_map", "attn_implementation", "max_length", "use_cache", "transformers_version")


@dataclass(frozen=True, slots=True)
class ExportReport:
    """Result of an export; `export_report.json` has the same fields.

    Attributes:
        out: The folder.
        profile: Name of the profile.
        consumer: Software that loads it.
        consumer_run: `not run`, or the part of the consumer that was run here.
        command: Command or code that loads it.
        known_not_to_work: Limits, a sentence each.
        base: Base named by the adapter.
        base_identity: Identity of the base.
        adapter_sha256: Hash of each adapter file.
        onto: As in a merge; None if nothing was merged.
        hd_num: Maximum number of crops per image, as trained.
        checks: Results of all checks.
        warnings: Warnings, a line each.
        file_sha256: Hash of every file.
        ixtune_version: Version of ixtune.
    """

    out: str
    profile: str
    consumer: str
    consumer_run: str
    command: str
    known_not_to_work: tuple[str, ...]
    base: str
    base_identity: str
    adapter_sha256: dict[str, str]
    onto: Onto | None
    hd_num: int
    checks: tuple[ProfileCheck, ...]
    warnings: tuple[str, ...]
    file_sha256: dict[str, str]
    ixtune_version: str


def export(
    adapter: Path,
    base: Path,
    out: Path,
    profile: str,
    *,
    onto: Onto = "bf16",
    force: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Write an adapter in the form of a profile, check it, and only then rename it to `out`.

    Args:
        adapter: Adapter or run folder.
        base: Folder of its base.
        out: Folder to write; it must not exist.
        profile: One of `PROFILES`.
        onto: What to merge into, see `merge`.
        force: Accept a base other than the one trained on.
        progress: Progress callback.

    Raises:
        UsageError: There is no such profile.
        IxtuneError: Adapter, base or disk do not allow it, or the result fails its checks. `out` does not exist then.
    """
    chosen = profile_named(profile)
    weights = read_adapter(adapter)
    sizes = Sizes.from_config_json(read_config_json(base))
    if chosen.name in ("original", "lmdeploy-0.13"):
        require_code(base)
    if chosen.name == "lmdeploy-0.13":  # before gigabytes are written
        _require_passed(chosen.name, base, list(recognized_by_lmdeploy(base)))
    hd_num = int(weights.record.get("hd_num") or sizes.member.hd_num)
    trained_for = member_of(weights.record) if weights.record else sizes.member
    warnings = _warnings(chosen, base, trained_for, hd_num)
    try:
        with atomic_folder(out) as partial:
            if chosen.name == "peft-original":
                warnings += _adapter_alone(weights, base, partial, force=force)
            else:
                warnings += _merged(chosen, weights, base, partial, sizes, hd_num, onto, force, progress)
            name = str(weights.record.get("base") or base)
            facts = card.Facts(chosen, name, terms_of(base, sizes), weights.record, hd_num, tuple(warnings))
            (partial / card.FILE).write_text(card.text(facts), encoding="utf-8")
            report = ExportReport(
                out=str(out),
                profile=chosen.name,
                consumer=chosen.consumer,
                consumer_run="its configuration and processor; weights were checked by name and shape"
                if chosen.run_here
                else "not run",
                command=chosen.command.replace("DIR", str(out)),
                known_not_to_work=chosen.limits,
                base=name,
                base_identity=base_identity(open_checkpoint(base)),
                adapter_sha256={name: sha256_file(weights.folder / name) for name in (WEIGHTS_FILE, CONFIG_FILE)},
                onto=None if chosen.name == "peft-original" else onto,
                hd_num=hd_num,
                checks=tuple(checks_of(partial, chosen.name)),
                warnings=tuple(warnings),
                file_sha256=hashes_of(partial),
                ixtune_version=ixtune.__version__,
            )
            _require_passed(chosen.name, out, report.checks)
            atomic_write_json(partial / REPORT_FILE, asdict(report))
    except OSError as error:
        raise IxtuneError(
            f"the export could not be written: {error.strerror or error}",
            where=str(out),
            hint="check free space and permissions, then export again; nothing was left behind",
        ) from error
    return report


def _adapter_alone(weights: AdapterWeights, base: Path, folder: Path, *, force: bool) -> list[str]:
    """Write the adapter for peft 0.10 on the original model; return warnings."""
    checkpoint = open_checkpoint(base)
    warnings = check_fit(weights, checkpoint, base_identity(checkpoint), force=force)
    peft_original.write(weights, folder, str(weights.record.get("base") or base))
    shutil.copyfile(base / "config.json", folder / BASE_CONFIG_FILE)
    return warnings


def _merged(
    profile: Profile,
    weights: AdapterWeights,
    base: Path,
    folder: Path,
    sizes: Sizes,
    hd_num: int,
    onto: Onto,
    force: bool,
    progress: Progress | None,
) -> list[str]:
    """Write the merged model in the form of the profile; return warnings."""
    staging = folder / "merged"
    if profile.name == "nf4":  # both exist side by side for a while; checked before gigabytes are written
        require_space(folder / "x", open_checkpoint(base).nbytes + _nf4_bytes(sizes))
    done = merge(weights.folder, base, staging, onto=onto, force=force, progress=progress)
    if profile.name == "nf4":
        source = open_checkpoint(staging)
        advance = counter(progress, source.nbytes)
        nf4_shards.write(source, sizes, folder, lambda nbytes: advance("quantizing", nbytes))
        for shard in source.shards:
            (staging / shard).unlink()
        (staging / nf4_shards.INDEX_FILE).unlink(missing_ok=True)
    for file in sorted(staging.iterdir()):
        file.rename(folder / file.name)
    staging.rmdir()
    _name_the_folder(folder / MERGE_REPORT_FILE, keep_hashes=profile.name != "nf4")
    if profile.name == "nf4":
        record = json.loads((folder / RECORD_FILE).read_bytes())
        atomic_write_json(folder / RECORD_FILE, {**record, "quantize": "nf4"})
    if profile.code_runs:  # the original code names the tokens that end an answer itself
        (folder / GENERATION_FILE).unlink(missing_ok=True)
    carry(base, folder)
    if not profile.code_runs:
        _for_our_classes(profile, base, folder, sizes, hd_num)
    return list(done.warnings)


def _nf4_bytes(sizes: Sizes) -> int:
    return sum(sizes.weight_bytes(nf4=True, float_bytes=2).values()) + _SPARE_BYTES


def _for_our_classes(profile: Profile, base: Path, folder: Path, sizes: Sizes, hd_num: int) -> None:
    """Write configuration, processor files and code for our Auto classes in place of the base's own."""
    for file in folder.glob("*.py"):
        file.unlink()
    given = json.loads((base / "config.json").read_bytes())
    if Sizes.from_config_json(given) != sizes:  # transformers cannot know what the original keeps in code
        given = completed(given, base)
    config = {key: value for key, value in given.items() if key not in _DROPPED_KEYS}
    atomic_write_json(folder / "config.json", {**config, "architectures": ["IXC2ForCausalLM"]})
    if profile.name == "nf4":
        checkpoint = open_checkpoint(base)
        nf4_shards.add_to_config(folder / "config.json", sizes, checkpoint.by_name["output.weight"].dtype)
    record = json.loads((folder / RECORD_FILE).read_bytes())
    write_processor_files(
        folder,
        hd_num,
        upscale=record.get("upscale", True),
        corrections=tuple(record.get("corrections", ())),
        member=member_of(record),
    )
    standalone.write(folder)


def _name_the_folder(path: Path, *, keep_hashes: bool) -> None:
    """Correct the paths in the merge report: the merge was made in a folder inside this one."""
    report = json.loads(path.read_bytes())
    report.pop("out", None)
    if not keep_hashes:  # the 16-bit shards it lists are gone
        report.pop("file_sha256", None)
    atomic_write_json(path, report)


def _warnings(profile: Profile, base: Path, member: Member, hd_num: int) -> list[str]:
    warnings = []
    if profile.name == "lmdeploy-0.13":
        trained = "as trained" if hd_num == member.lmdeploy_hd_num else f"but the adapter was trained at {hd_num}"
        warnings.append(f"lmdeploy 0.13 shows every image at hd_num {member.lmdeploy_hd_num}, {trained}")
    rule = member.at_inference.rule
    if profile.code_runs and member.rule != rule:
        warnings.append(
            f"the original code lays out images by the rule {rule.name!r}, training used {member.rule.name!r}; "
            f"for equal layouts prepare with --layout-rule {rule.name}"
        )
    if profile.name == "nf4":
        warnings.append("the merged weights are rounded to 4 bits once more: measure with `ixtune evaluate --base DIR`")
    if profile.code_runs and profile.name != "peft-original" and not code_files(base)[0]:
        warnings.append("the base contains no code: only ixtune loads this model")
    return warnings


def _require_passed(profile: str, folder: Path, checks: Sequence[ProfileCheck]) -> None:
    if failed := [f"{check.what}: {check.found}" for check in checks if not check.passed]:
        raise IxtuneError(
            f"{len(failed)} checks failed for the profile {profile}",
            where=str(folder),
            hint="use a base with all files of the original, or another profile; nothing was left behind",
            notes=failed,
        )
