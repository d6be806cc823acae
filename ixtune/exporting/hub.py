"""Upload an exported folder to a private repository of the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from ixtune.errors import IxtuneError, UsageError

_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*/[A-Za-z0-9_-][A-Za-z0-9._-]*")


def push(folder: Path, repository: str) -> str:
    """Upload a folder; creates a private repository if there is none.

    Args:
        folder: Folder to upload; never changed.
        repository: `owner/name`.

    Returns:
        The address of the uploaded folder.

    Raises:
        UsageError: Not a valid repository name.
        IxtuneError: The hub cannot be reached or refuses.
    """
    check_name(repository)
    from huggingface_hub import HfApi, constants

    hint = f"the folder is complete: later, `hf upload {repository} {folder}`"
    if constants.HF_HUB_OFFLINE:
        raise IxtuneError(
            "nothing was uploaded: HF_HUB_OFFLINE is set", where=repository, hint=f"unset it and log in; {hint}"
        )
    try:
        api = HfApi()
        made = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="ixtune export")
    except Exception as error:  # the hub library does not wrap the errors of its HTTP and transfer packages
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise IxtuneError(
            f"the upload failed or is incomplete: {reason}",
            where=repository,
            hint=f"check the connection and `hf auth login`; {hint}",
        ) from error
    return str(made)


def check_name(repository: str) -> None:
    """Refuse an invalid repository name before the export starts.

    Raises:
        UsageError: It is invalid.
    """
    if not _ID.fullmatch(repository):
        raise UsageError(f"{repository!r} is not a repository name", where="--push-to-hub", hint="pass OWNER/NAME")
