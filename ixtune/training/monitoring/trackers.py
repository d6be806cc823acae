"""Experiment trackers, by transformers' callbacks: checks before anything is loaded, and settings."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Sequence
from pathlib import Path

from ixtune.errors import UsageError

# The distributions that transformers' callback of a tracker imports. Kubeflow's needs a server and no package.
_DISTRIBUTIONS: dict[str, tuple[tuple[str, ...], ...]] = {
    "azure_ml": (("azureml-core",),),
    "clearml": (("clearml",),),
    "codecarbon": (("codecarbon",),),
    "comet_ml": (("comet-ml",),),
    "dagshub": (("dagshub",), ("mlflow", "mlflow-skinny")),
    "dvclive": (("dvclive",),),
    "flyte": (("flytekit",), ("flytekitplugins-deck-standard",)),
    "kubeflow": (),
    "mlflow": (("mlflow", "mlflow-skinny"),),
    "neptune": (("neptune",),),
    "swanlab": (("swanlab",),),
    "tensorboard": (("tensorboard", "tensorboardX"),),
    "trackio": (("trackio",),),
    "wandb": (("wandb",),),
}
_KUBEFLOW = "KUBEFLOW_TRAINER_SERVER_URL"


def require(names: Sequence[str]) -> None:
    """Refuse trackers that cannot work here, before anything is loaded.

    Raises:
        UsageError: A package, a login or a server is missing; the hint says how to add it.
    """
    for name in names:
        for alternatives in _DISTRIBUTIONS[name]:
            if not any(map(_is_installed, alternatives)):
                raise UsageError(
                    f"training.report_to lists {name}, which is not installed",
                    hint=f'pip install "ixtune[{name}]", or remove it from training.report_to'
                    if name in ("tensorboard", "wandb")
                    else f"pip install {alternatives[0]}, or remove {name} from training.report_to",
                )
    if "kubeflow" in names and not os.environ.get(_KUBEFLOW):
        raise UsageError(
            "training.report_to lists kubeflow, but this is not a Kubeflow training job",
            where=_KUBEFLOW,
            hint="set it to the server's address, or remove kubeflow from training.report_to",
        )
    if "wandb" in names:
        _require_wandb_login()


def prepare(names: Sequence[str], run: Path) -> None:
    """Set project, run name and folder in the trackers' own variables, unless they are set already.

    TensorBoard needs none: its files go to `runs` in the run folder.
    """
    defaults: dict[str, str] = {}
    if "wandb" in names:
        defaults |= {"WANDB_PROJECT": "ixtune", "WANDB_NAME": run.name, "WANDB_DIR": str(run)}
    if "mlflow" in names:
        defaults["MLFLOW_EXPERIMENT_NAME"] = "ixtune"
        if not os.environ.get("MLFLOW_TRACKING_URI"):  # files, for which a database and its packages are not needed
            defaults |= {"MLFLOW_TRACKING_URI": f"{(run / 'mlruns').absolute()}", "MLFLOW_ALLOW_FILE_STORE": "true"}
    if "trackio" in names:
        defaults["TRACKIO_PROJECT"] = "ixtune"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _is_installed(distribution: str) -> bool:
    try:  # not by looking for a module: W&B leaves a folder with its name behind, which would be mistaken for one
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _require_wandb_login() -> None:
    """Refuse W&B online without a key: it would ask for one at the first step, or fail there without a terminal."""
    if os.environ.get("WANDB_MODE", "online") not in ("online", "shared") or os.environ.get("WANDB_API_KEY"):
        return
    import wandb

    if not wandb.login(prompt=False):
        raise UsageError(
            "training.report_to lists wandb, which is not logged in",
            where="WANDB_API_KEY",
            hint="run `wandb login`, or set WANDB_MODE=offline and upload later with `wandb sync`",
        )
