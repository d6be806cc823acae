"""Types of the values in a recipe that need more than Python's own: known names, and values of several types."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, ValidatorFunctionWrapHandler, WithJsonSchema, WrapValidator

from ixtune.scores import SCORES

Linear = Literal["wqkv", "wo", "w1", "w2", "w3"]
Target = Literal["wqkv", "wo", "w1", "w2", "w3", "projector"]
Weight = Annotated[float, Field(gt=0)]


def _one_of(words: str) -> WrapValidator:
    """Report one message for a value of several types, where pydantic reports one for each type."""

    def validate(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(f"should be {words}") from None

    return WrapValidator(validate)


Layers = Annotated[
    Literal["auto"] | bool | Annotated[int, Field(ge=1)], _one_of("auto, true, false or a number of layers")
]
Switch = Annotated[Literal["auto"] | bool, _one_of("auto, true or false")]
Chunk = Annotated[
    Literal["auto"] | Annotated[int, Field(ge=1)], _one_of("auto or a whole number greater than or equal to 1")
]


def _among(*known: str) -> AfterValidator:
    """Accept one of the known names; suggest the closest one otherwise, or all if none is close."""

    def validate(name: str) -> str:
        if name in known:
            return name
        nearest = difflib.get_close_matches(name.lower(), known, n=1)
        raise ValueError(
            f"should be a known name, perhaps {nearest[0]}" if nearest else f"should be one of {', '.join(known)}"
        )

    return AfterValidator(validate)


ScoreName = Annotated[str, _among(*SCORES), WithJsonSchema({"enum": [*SCORES]})]
BestBy = Annotated[str, _among("loss", *SCORES), WithJsonSchema({"enum": ["loss", *SCORES]})]

# those of transformers' integrations, which must not be imported here
TRACKERS = (
    "azure_ml", "clearml", "codecarbon", "comet_ml", "dagshub", "dvclive", "flyte", "kubeflow", "mlflow", "neptune",
    "swanlab", "tensorboard", "trackio", "wandb",
)  # fmt: skip
TrackerName = Annotated[str, _among(*TRACKERS), WithJsonSchema({"enum": [*TRACKERS]})]
HUB_ID_PATTERN = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*/[A-Za-z0-9_-][A-Za-z0-9._-]*$"

# strict sections refuse text for a number; a path and a list have no other form in YAML
RecipePath = Annotated[Path, Field(strict=False)]
