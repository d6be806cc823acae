"""Options that several commands share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from ixtune.layout import MAX_HD_NUM


def finite(value: float | None) -> float | None:
    """Refuse inf and nan, which typer's range check lets through."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not an amount of memory")
    return value


SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a recipe key, as KEY=VALUE without --set does; repeatable."
    ),
]

# the model that answers
AdapterOption = Annotated[Path | None, typer.Option("--adapter", help="Adapter or run folder.")]
BaseOption = Annotated[
    str | None, typer.Option("--base", help="`nano`, a checkpoint folder (a merged one too) or a hub id.")
]
QuantizeOption = Annotated[
    str | None, typer.Option("--quantize", help="Quantization of the base: nf4 or none. Default: as trained.")
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Accept a base other than the one the adapter was trained on.")
]

# how images are read
HdNumOption = Annotated[
    int | None,
    typer.Option("--hd-num", min=1, max=MAX_HD_NUM, help="Maximum crops per image. Default: as trained, or 25."),
]
DpiOption = Annotated[
    int | None,
    typer.Option("--dpi", min=1, help="Pixels per inch of PDF pages. Default: as many as fill the layout at hd_num."),
]

ImageRootOption = Annotated[
    Path | None,
    typer.Option(
        "--image-root",
        help="Folder that image paths are relative to. Default: the folder of the file; for a prepared set, where "
        "its images were.",
    ),
]

# how answers are generated
TemplateOption = Annotated[
    Literal["training", "original"],
    typer.Option(
        "--template", help="Chat template: training, or original with the system prompt of the original's chat."
    ),
]
MaxNewTokensOption = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Maximum new tokens per answer.")]
JsonSchemaOption = Annotated[
    Path | None,
    typer.Option(
        "--json-schema", metavar="FILE", help="JSON schema that every answer follows. Default: answers are free text."
    ),
]
DoSampleOption = Annotated[bool, typer.Option("--do-sample", help="Sample tokens. Default: take the most likely one.")]
TemperatureOption = Annotated[float, typer.Option("--temperature", help="Sampling temperature.")]
TopPOption = Annotated[
    float, typer.Option("--top-p", help="Sample from the smallest set of tokens with this probability.")
]
TopKOption = Annotated[int, typer.Option("--top-k", min=0, help="Sample from this many most likely tokens; 0 for all.")]
RepetitionPenaltyOption = Annotated[
    float, typer.Option("--repetition-penalty", help="Above 1: make tokens that occurred before less likely.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Random seed for sampling.")]
