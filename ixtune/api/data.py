"""The public function that prepares data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ixtune.api.arguments import StrPath, several_of
from ixtune.base import HUB_ID

if TYPE_CHECKING:
    from ixtune.data.prepare import PrepareReport


def prepare(
    sources: StrPath | Sequence[StrPath],
    out: StrPath,
    *,
    base: str = HUB_ID,
    hd_num: int | None = None,
    image_root: StrPath | None = None,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    question: str | None = None,
    system: str | None = None,
    split: str | None = None,
    config: str | None = None,
    dataset: str | None = None,
    encoding: str | None = None,
    image_pattern: str | None = None,
    missing_placeholder: Literal["front", "reject"] | None = None,
    allow_image_text: bool = False,
    ratios: bool = False,
    max_tokens: int | None = None,
    over_length: Literal["reject", "lower"] = "reject",
    upscale: bool = True,
    corrections: Sequence[str] = (),
    verify: bool = False,
    embed_images: bool = False,
    pages: Literal["one", "all"] = "one",
    dpi: int | None = None,
    exclude: StrPath | Sequence[StrPath] = (),
    near_duplicates: bool = False,
    val_fraction: float = 0.0,
    seed: int = 0,
    max_reject_rate: float = 0.01,
    workers: int = 1,
    engine: Literal["processes", "ray"] = "processes",
    model: str | None = None,
    layout_rule: str | None = None,
) -> PrepareReport:
    """Turn raw data into a prepared set: token ids, image layouts, and a list of rejected records.

    Args:
        sources: One or several files, folders, hub datasets or data configs (YAML), in any form `ixtune prepare` reads.
        out: Folder to write; it must not exist.
        base: Base whose tokenizer to use: `nano`, a folder, or a hub id.
        hd_num: Maximum number of 336x336 crops per image, unless a source or record sets its own.
        image_root: Folder that image paths are relative to; by default the source's own.
        format: Format of the data, such as `csv` or `llava`; detected by default.
        columns: Our column names to theirs, for tables: `{"question": "q"}`.
        question: Question to ask of each row of a table without a question column.
        system: System prompt for records that have none.
        split: Split of a dataset, sheet of a workbook, or list of a JSON object, if there are several.
        config: Configuration of a hub dataset that has several.
        dataset: Dataset to read from LLaMA-Factory's dataset_info.json.
        encoding: Text encoding of CSV and TSV files; by default UTF-8, or UTF-16 with a byte order mark.
        image_pattern: Path of each image with fields in braces, such as `{image_id:012d}.jpg`.
        missing_placeholder: Put images that no placeholder places in `front` of the first question, or `reject` the
            record; by default a single image goes in front and several are rejected.
        allow_image_text: Train marks such as <img> as text; by default records with them are rejected.
        ratios: Read the numbers in a data.txt as weights, not as thousands of records.
        max_tokens: Maximum tokens per record, image tokens included; no limit by default.
        over_length: Reject longer records, or lower their images' hd_num until they fit.
        upscale: Enlarge small images, as the reference does.
        corrections: Deviations from the reference: `exif`, `alpha`, `depth`, `first-frame`.
        verify: Decode every image completely.
        embed_images: Copy the images into the set.
        pages: Take `all` pages of a TIFF that is named without a page, or reject it (`one`).
        dpi: Resolution of PDF pages; by default the one that fills the layout.
        exclude: Prepared sets whose images no record may show, such as a benchmark.
        near_duplicates: Treat images that look the same as one image in the split and for `exclude`.
        val_fraction: Fraction of records to put in `out/validation`; the others go to `out/train`.
        seed: Random seed for the split and for weighted sampling.
        max_reject_rate: Fraction of rejects above which `TooManyRejects` is raised; the set is still written.
        workers: Number of processes; any number gives the same bytes.
        engine: Where they run: on this machine, or on a Ray cluster.
        model: `4khd` or `2.5`; by default detected from the base's tensors.
        layout_rule: How 2.5 lays out images: `fine-tuning` (the default) or `inference`.

    Returns:
        Counts by source, reject reason and set.

    Raises:
        IxtuneError: A source, an option or the tokenizer is wrong; `out` does not exist then.

    Examples:
        >>> import ixtune
        >>> report = ixtune.prepare("questions.csv", "prepared", base="nano", hd_num=1, image_root="photos",
        ...     val_fraction=0.5)
        >>> report.read, report.accepted, report.rejected
        (8, 8, 0)
    """
    from ixtune.base import resolve_tokenizer
    from ixtune.checkpoint.member import member_for
    from ixtune.data.prepare import prepare as prepare_set
    from ixtune.data.prepared.manifest import PrepareOptions
    from ixtune.data.remote_files import roots_of
    from ixtune.data.sources.command_line import sources_given
    from ixtune.data.sources.data_config import format_of
    from ixtune.data.sources.source import Source

    container, schema = format_of(format) if format else (None, None)
    defaults = Source(
        path="",
        container=container,
        schema=schema,
        columns=tuple((columns or {}).items()),
        question=question,
        **roots_of(image_root),
        system=system,
        split=split,
        config=config,
        encoding=encoding,
        image_pattern=image_pattern,
        missing_placeholder=missing_placeholder,
        allow_image_text=allow_image_text or None,
    )
    folder = resolve_tokenizer(base)
    member = member_for(base, folder, model, layout_rule)
    options = PrepareOptions(
        model=member.name,
        layout_rule=member.rule.name,
        hd_num=hd_num,
        upscale=upscale,
        corrections=tuple(corrections),
        max_tokens=max_tokens,
        over_length=over_length,
        verify=verify,
        embed_images=embed_images,
        pages=pages,
        dpi=dpi,
        exclude=tuple(map(str, several_of(exclude))),
        near_duplicates=near_duplicates,
        val_fraction=val_fraction,
        seed=seed,
    )
    given = [str(source) for source in several_of(sources)]
    return prepare_set(
        sources_given(given, defaults, not ratios, dataset),
        Path(out),
        base=folder,
        options=options,
        max_reject_rate=max_reject_rate,
        workers=workers,
        engine=engine,
    )
