"""The options of `ixtune prepare`, in the panels of its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ixtune.layout import MAX_HD_NUM

_READING = "Reading the data"
_IMAGES = "Images"
_RUN = "Run"

# what most people need
SourcesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE",
        help="CSV, TSV, Excel, Parquet, JSON, JSON Lines, a folder (datasets, images with metadata or with a file "
        "each, class folders, Parquet or tar shards), a hub name, a data.txt, or a YAML list of sources. With "
        "--embed-images also s3://, gs://, hf:// or az://.",
    ),
]
OutOption = Annotated[Path, typer.Option(help="Output folder; it must not exist yet.")]
HdNumOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MAX_HD_NUM,
        help="Maximum number of crops per image, e.g. 9, 16, 25 or 55, or 4, 6, 9 or 18 for 2.5. "
        "A record's own `hd_num` takes precedence.",
    ),
]
BaseOption = Annotated[str, typer.Option(help="Base model: a hub id, a folder with its tokenizer.model, or `nano`.")]
ModelOption = Annotated[
    str | None, typer.Option(metavar="4khd|2.5", help="Model to prepare for. Default: that of the base.")
]
ImageRootOption = Annotated[
    str | None,
    typer.Option(
        help="Folder that image paths are relative to, or its URL in an object store. Default: the source's folder."
    ),
]
ColumnsOption = Annotated[
    str,
    typer.Option(
        metavar="OURS=THEIRS,...",
        help="Names of fields: image=file,question=query.en,answer=answers[].answer,id=key. Default: detected.",
    ),
]
QuestionOption = Annotated[
    str | None, typer.Option(help="Question of every record, for a table without a question column.")
]
ValFractionOption = Annotated[
    float,
    typer.Option(
        min=0,
        max=0.9,
        help="Fraction of records to put in OUT/validation. Records that share an image stay on the same side.",
    ),
]
MaxTokensOption = Annotated[
    int | None,
    typer.Option(min=1, help="Maximum length of a record, image tokens included. Default: no limit."),
]

# how the data are read
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="NAME",
        help="Format of the data, e.g. csv, llava or openai. Default: detected.",
        rich_help_panel=_READING,
    ),
]
SplitOption = Annotated[
    str | None,
    typer.Option(
        help="Split of a dataset, sheet of a workbook, or list of a JSON object, where there are several.",
        rich_help_panel=_READING,
    ),
]
ConfigOption = Annotated[
    str | None,
    typer.Option(help="Configuration of a hub dataset that has several.", rich_help_panel=_READING),
]
DatasetOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Dataset to read from LLaMA-Factory's dataset_info.json.", rich_help_panel=_READING
    ),
]
EncodingOption = Annotated[
    str | None,
    typer.Option(
        help="Text encoding of CSV and TSV files, e.g. cp1252. Default: UTF-8, or UTF-16 with a byte order mark.",
        rich_help_panel=_READING,
    ),
]
SystemOption = Annotated[
    str | None, typer.Option(help="System prompt for records that have none.", rich_help_panel=_READING)
]
ThousandsOption = Annotated[
    bool,
    typer.Option(
        "--thousands/--ratios",
        help="Meaning of the numbers in a data.txt: thousands of records, or ratios.",
        rich_help_panel=_READING,
    ),
]

# images
ImagePatternOption = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Path of each image with fields in braces, e.g. val2014/COCO_val2014_{image_id:012d}.jpg.",
        rich_help_panel=_IMAGES,
    ),
]
MissingPlaceholderOption = Annotated[
    str | None,
    typer.Option(
        metavar="front|reject",
        help="Images without a placeholder: put them in front of the first question, or reject the record. "
        "Default: a single image goes in front, several are rejected.",
        rich_help_panel=_IMAGES,
    ),
]
AllowImageTextOption = Annotated[
    bool,
    typer.Option(
        "--allow-image-text",
        help="Train marks such as <img> or <|image_pad|> as text. Default: records with them are rejected.",
        rich_help_panel=_IMAGES,
    ),
]
OverLengthOption = Annotated[
    str,
    typer.Option(
        metavar="reject|lower",
        help="What to do with records longer than --max-tokens: reject them, or lower the hd_num of their images.",
        rich_help_panel=_IMAGES,
    ),
]
LayoutRuleOption = Annotated[
    str | None,
    typer.Option(
        metavar="fine-tuning|inference",
        help="How images are laid out for 2.5: as its official fine-tuning or its chat does. Default: fine-tuning.",
        rich_help_panel=_IMAGES,
    ),
]
UpscaleOption = Annotated[
    bool,
    typer.Option(
        "--upscale/--no-upscale", help="Enlarge small images, as the reference does.", rich_help_panel=_IMAGES
    ),
]
CorrectOption = Annotated[
    str,
    typer.Option(
        metavar="NAME,...",
        help="Corrections that the reference does not make: exif (rotate), alpha (put on white), depth (scale 16 "
        "to 8 bits), first-frame. Default: none.",
        rich_help_panel=_IMAGES,
    ),
]
VerifyOption = Annotated[
    bool,
    typer.Option(
        "--verify",
        help="Decode every pixel to find damaged images. Default: headers only.",
        rich_help_panel=_IMAGES,
    ),
]
EmbedImagesOption = Annotated[
    bool,
    typer.Option("--embed-images", help="Copy the images into the prepared set, each once.", rich_help_panel=_IMAGES),
]
PagesOption = Annotated[
    str,
    typer.Option(
        metavar="one|all",
        help="What to do with a TIFF of several pages that is named without #page=: take all pages, or reject it "
        "(one).",
        rich_help_panel=_IMAGES,
    ),
]
DpiOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Resolution of PDF pages in pixels per inch. Default: the one that fills the layout at hd_num.",
        rich_help_panel=_IMAGES,
    ),
]
ExcludeOption = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="PREPARED",
        help="Reject records that show an image of this prepared set, e.g. a benchmark; repeat for several.",
        rich_help_panel=_IMAGES,
    ),
]
NearDuplicatesOption = Annotated[
    bool,
    typer.Option(
        "--near-duplicates",
        help="Treat images that look the same as one image in the split and for --exclude; decodes every image. "
        "Default: images with the same bytes only.",
        rich_help_panel=_IMAGES,
    ),
]

# the run
SeedOption = Annotated[
    int,
    typer.Option(help="Random seed for the train/validation split and for weighted sampling.", rich_help_panel=_RUN),
]
MaxRejectRateOption = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        help="Exit with code 3 if a larger fraction is rejected; the accepted records are still written.",
        rich_help_panel=_RUN,
    ),
]
AsJsonOption = Annotated[bool, typer.Option("--json", help="Print the report as JSON.", rich_help_panel=_RUN)]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        "-j",
        min=1,
        help="Number of processes or Ray actors; any number gives the same set. Default: one per core, at most 8; with "
        "Ray one per processor of the cluster.",
        rich_help_panel=_RUN,
    ),
]
EngineOption = Annotated[
    Literal["processes", "ray"],
    typer.Option(
        help="Where the data are prepared: in processes of this machine, or on the Ray cluster in RAY_ADDRESS; each "
        "gives the same set.",
        rich_help_panel=_RUN,
    ),
]
