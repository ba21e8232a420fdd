"""Downloads from the Hugging Face hub, and uploads to it.

Place in the flow: below everything that takes the name of a model (`checkpoint.py`, `interop/checkpoint_files.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .errors import UserError


def is_hub_id(name: str | Path) -> bool:
    """Whether `name` looks like owner/name on the hub: one slash, and no folder called `owner` here."""
    return str(name).count("/") == 1 and not str(name).startswith((".", "/")) and not Path(name).parent.is_dir()


def from_hub(name: str, patterns: Sequence[str] | None = None) -> Path:
    """The local folder with the files of a repository, downloaded unless they are in the cache.

    patterns: glob patterns of the files to fetch; all files by default. Raises UserError, one line, where the hub or
    the repository cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        files = f"its files ({', '.join(patterns)})" if patterns else "all its files"
        raise UserError(
            f"{name}: neither a folder here nor reachable on the hub ({reason}); "
            f"download {files} elsewhere, put them into a folder, and pass its path instead"
        ) from None


def check_name(name: str) -> None:
    """Raise UserError for a name that the hub does not accept as OWNER/NAME."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if name.count("/") != 1:
        raise UserError(f"{name}: not a name on the hub; write OWNER/NAME")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"{name}: not a name on the hub ({error})") from None


def to_hub(folder: Path, name: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload `folder` to the repository `name` (OWNER/NAME), created if missing; returns its address.

    private: whether a new repository is private. token: access token; by default HF_TOKEN, or the one that
    `hf auth login` has stored. Raises UserError for an invalid name, and if the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    check_name(name)
    api = HfApi(token=token)
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload a LatentLM model")
    except (OSError, *HfHubHTTPError.__bases__) as error:  # the base class of its HTTP library's errors
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{name}: the upload failed ({reason}); log in with `hf auth login`, or give --token") from None
    return str(address)
