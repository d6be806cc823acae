"""Upload the adapter of a finished run, with its card and its report, to a repository of the Hugging Face hub."""

from __future__ import annotations

import shutil
from pathlib import Path

from ixtune.errors import UsageError
from ixtune.exporting.hub import push
from ixtune.files import atomic_folder

_KEY = "training.push_to_hub"
_STAGED = "upload"
_REPORT = ("report.html", "report.md", "report.json")


def require_login(repository: str) -> None:
    """Refuse an upload that cannot succeed, before anything is trained.

    Raises:
        UsageError: The hub is switched off, or there is no login.
    """
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise UsageError(
            f"{_KEY}={repository}, but HF_HUB_OFFLINE is set",
            where=_KEY,
            hint=f"unset it, or remove {_KEY} from the recipe and upload later with `hf upload`",
        )
    if get_token() is None:
        raise UsageError(
            f"{_KEY}={repository}, but you are not logged in to the hub",
            where=_KEY,
            hint="run `hf auth login`, or set HF_TOKEN",
        )


def publish(run: Path, repository: str) -> str:
    """Upload `run/adapter` and the report next to it, and return the address.

    Raises:
        IxtuneError: The hub cannot be reached or refuses. The files to upload stay in `run/upload`.
    """
    staged = run / _STAGED
    shutil.rmtree(staged, ignore_errors=True)  # left by an upload that failed
    with atomic_folder(staged) as partial:
        shutil.copytree(run / "adapter", partial, dirs_exist_ok=True)
        for name in _REPORT:
            if (run / name).is_file():
                shutil.copy2(run / name, partial / name)
    address = push(staged, repository)
    shutil.rmtree(staged)
    return address
