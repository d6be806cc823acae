"""The public functions that write and load weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ixtune.api.arguments import Quantize, StrPath, path_of, several_of

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from ixtune.exporting.export import ExportReport
    from ixtune.merging.merge import MergeReport
    from ixtune.model.model import IXC2ForCausalLM
    from ixtune.processing import IXC2Processor


def merge(
    adapters: StrPath | Sequence[StrPath],
    out: StrPath,
    *,
    base: str | None = None,
    weights: Sequence[float] | None = None,
    in_turn: bool = False,
    onto: Literal["bf16", "nf4"] = "bf16",
    force: bool = False,
) -> MergeReport:
    """Merge adapters into their base, write one checkpoint under the original names, and check it.

    After a kill the same call resumes.

    Args:
        adapters: Adapter or run folders.
        out: Folder to write; it must not exist.
        base: `nano`, a checkpoint folder or a hub id; by default the base the first adapter names.
        weights: Factor of each adapter's change: W + sum of wi (Wi - W).
        in_turn: Each adapter was trained on the base with those before it merged in.
        onto: `bf16`: the base as stored. `nf4`: its decoder linears as QLoRA training saw them.
        force: Accept another base than the one trained on.

    Returns:
        Adapters merged and result of the check.

    Raises:
        IxtuneError: An adapter or the base is wrong, the disk is full, or the check fails; `out` does not exist then.

    Examples:
        >>> import ixtune
        >>> report = ixtune.merge("run", "merged")
        >>> report.merged > 0, report.max_abs_error < 0.01
        (True, True)
    """
    from ixtune.adapter.weights import named_base
    from ixtune.base import resolve
    from ixtune.errors import UsageError
    from ixtune.merging.merge import merge as merge_adapters

    folders = [Path(one) for one in several_of(adapters)]
    if not folders:
        raise UsageError("no adapter is given", where="adapters", hint="pass the folder of an adapter or a run")
    found = resolve(base or named_base(folders[0]))
    return merge_adapters(folders, found, Path(out), weights=weights, in_turn=in_turn, onto=onto, force=force)


def export(
    adapter: StrPath,
    out: StrPath,
    profile: str,
    *,
    base: str | None = None,
    onto: Literal["bf16", "nf4"] = "bf16",
    force: bool = False,
) -> ExportReport:
    """Write an adapter in the form that one consumer loads, and check it.

    Args:
        adapter: Adapter or run folder.
        out: Folder to write; it must not exist.
        profile: `peft-original`, `transformers`, `original`, `lmdeploy-0.13` or `nf4`.
        base: `nano`, a checkpoint folder or a hub id; by default the base the adapter names.
        onto: What to merge onto, as in `merge`.
        force: Accept another base than the one trained on.

    Returns:
        The command that loads it, the checks, and what is known not to work.

    Raises:
        IxtuneError: The adapter or the base does not allow this profile, or a check fails; `out` does not exist then.

    Examples:
        >>> import ixtune
        >>> report = ixtune.export("run", "exported", "transformers")
        >>> all(check.passed for check in report.checks)
        True
    """
    from ixtune.adapter.weights import named_base
    from ixtune.base import resolve
    from ixtune.exporting.export import export as export_adapter

    folder = Path(adapter)
    found = resolve(base or named_base(folder))
    return export_adapter(folder, found, Path(out), profile, onto=onto, force=force)


def load_model(
    base: StrPath | None = None,
    *,
    adapter: StrPath | None = None,
    quantize: Quantize | None = None,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    force: bool = False,
) -> IXC2ForCausalLM | PeftModel:
    """Load a base, a merged model, or a base with an adapter, ready for `generate`.

    Args:
        base: `nano`, a checkpoint or merged folder, or a hub id; by default the base the adapter names.
        adapter: Adapter or run folder to put on it.
        quantize: `nf4` or `none`; by default as the adapter was trained, `none` without one.
        dtype: Type of all other weights; by default bfloat16 on a GPU, float32 elsewhere.
        device: Where to load to; by default the GPU if there is one.
        force: Accept another base than the adapter was trained on.

    Returns:
        The network in evaluation mode, or PEFT's model around it if there is an adapter.

    Raises:
        IxtuneError: Nothing is named, or the base or the adapter cannot be loaded.

    Examples:
        >>> import ixtune
        >>> model = ixtune.load_model(adapter="run")
        >>> type(model).__name__
        'PeftModelForCausalLM'
    """
    import torch

    from ixtune.adapter import bundle
    from ixtune.adapter.folder import read_info
    from ixtune.base import resolve
    from ixtune.checkpoint.identity import base_identity
    from ixtune.checkpoint.shards import open_checkpoint
    from ixtune.data.generation_file import stops_of
    from ixtune.errors import UsageError
    from ixtune.evaluation.contenders import contender, require_form
    from ixtune.model.loading import load_base

    require_form(quantize)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise UsageError(f"dtype is {dtype!r}, not a torch.dtype", where="dtype", hint="pass one such as torch.float32")
    named = contender(None if base is None else str(base), path_of(adapter))
    folder = resolve(named.base)
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    form = dtype or (torch.bfloat16 if place.startswith("cuda") else torch.float32)
    if quantize is None and named.adapter is not None:
        quantize = read_info(named.adapter).get("quantize")
    network, _ = load_base(folder, quantize=quantize == "nf4", dtype=form, device=place)
    if (stops := stops_of(folder)) is not None and network.generation_config is not None:
        network.generation_config.eos_token_id = stops  # ixtune's own commands pass them at each call
    if named.adapter is None:
        return network
    model = bundle.load(network, named.adapter, base_identity(open_checkpoint(folder)), force)
    for parameter in model.parameters():  # trained parts are loaded in fp32; without autocast all must have one dtype
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(form)
    return model


def load_processor(
    base: StrPath | None = None,
    *,
    adapter: StrPath | None = None,
    hd_num: int | None = None,
) -> IXC2Processor:
    """Load the processor that turns questions and images into the arguments of `generate`, and ids into text.

    Args:
        base: `nano`, a checkpoint or merged folder, or a hub id; by default the base the adapter names.
        adapter: Adapter or run folder; images are then laid out as in its training.
        hd_num: Maximum number of crops per image; by default as trained, or 25.

    Returns:
        A transformers processor.

    Raises:
        IxtuneError: Nothing is named, or the base has no tokenizer.

    Examples:
        >>> import ixtune
        >>> processor = ixtune.load_processor(adapter="run")
        >>> inputs = processor(images=["photos/0.png"], text="What is this?", return_tensors="pt")
        >>> sorted(inputs)
        ['attention_mask', 'crops', 'grids', 'input_ids']
    """
    from ixtune.base import resolve_tokenizer
    from ixtune.checkpoint.member import member_for
    from ixtune.evaluation.contenders import contender
    from ixtune.evaluation.session import record_of, view_of
    from ixtune.processing import IXC2ImageProcessor, IXC2Processor
    from ixtune.tokenization import VOCABULARY_FILE, IXC2Tokenizer

    named = contender(None if base is None else str(base), path_of(adapter))
    folder = resolve_tokenizer(named.base)
    view = view_of(record_of(folder, named.adapter), hd_num, member_for(named.base, folder))
    corrections, laid_out = view.corrections.names(), view.member.record()
    images = IXC2ImageProcessor(view.hd_num, view.upscale, corrections, **laid_out)
    return IXC2Processor(images, IXC2Tokenizer(str(folder / VOCABULARY_FILE)))
