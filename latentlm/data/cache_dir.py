"""The cache folder, for files that can be made again: spoken clips, encoded media, copies of remote shards.

Place in the flow: 2, below what writes into it. It may be deleted at any time while nothing runs.
"""

from __future__ import annotations

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """$LATENTLM_CACHE, else $XDG_CACHE_HOME/latentlm, else ~/.cache/latentlm; it need not exist."""
    if "LATENTLM_CACHE" in os.environ:
        return Path(os.environ["LATENTLM_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latentlm"
