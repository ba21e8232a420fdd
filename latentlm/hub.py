"""Files from the Hugging Face hub, or one line that says what to put where.

Place in the flow: below everything that takes a name of a model: `checkpoint.py`, `interop/checkpoint_files.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .errors import UserError


def is_hub_id(name: str | Path) -> bool:
    """Whether `name` can only be meant as owner/name on the hub: one slash, and no folder `owner` here."""
    return str(name).count("/") == 1 and not str(name).startswith((".", "/")) and not Path(name).parent.is_dir()


def from_hub(name: str, patterns: Sequence[str] | None = None) -> Path:
    """The folder with the files of a repository, fetched unless they are here already; `patterns` names which files.

    Raises UserError, one line, where the hub or the repository cannot be reached.
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
