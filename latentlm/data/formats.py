"""The kinds of file that are read as data, and advice on other kinds.

Place in the flow: 2, below the manifest and the readers.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from ..config.modalities import modalities
from ..errors import UserError

READ = (
    "data are a JSONL manifest (.jsonl), Parquet (.parquet), uncompressed WebDataset tars (.tar), or a folder of "
    "pictures or sounds in folders that name their classes; see docs/data_format.md"
)
_LINE = '{"segments": [{"text": "…"}]}'
_UNPACK = "is compressed, which allows no random access; unpack it first"
ADVICE = {
    ".csv": "a table is read as Parquet: pandas.read_csv(FILE).to_parquet(…), with media as paths relative to that",
    ".txt": f"text is given as JSONL, one document per line: {_LINE}",
    ".json": f"is not JSON Lines: one document per line, as {_LINE}",
    ".gz": f"{_UNPACK}: gunzip -k FILE",
    ".zst": f"{_UNPACK}: unzstd FILE",
    ".xz": f"{_UNPACK}: unxz -k FILE",
    ".bz2": f"{_UNPACK}: bunzip2 -k FILE",
    ".zip": f"{_UNPACK}: unzip FILE",
    ".tgz": f"{_UNPACK}: tar -xzf FILE",
    ".arrow": "an Arrow file is read as Parquet: datasets.load_dataset(…).to_parquet(…)",
}
_SAME = {".tsv": ".csv", ".xlsx": ".csv", ".md": ".txt", ".srt": ".txt", ".log": ".txt", ".feather": ".arrow"}


def advice(path: str) -> str:
    """Advice on a file of a kind that is not read, for error messages."""
    suffix = PurePosixPath(path).suffix.lower()
    found = ADVICE.get(_SAME.get(suffix, suffix))
    if found is not None:
        return found.replace("FILE", PurePosixPath(path).name)
    for each in modalities():
        if suffix in each.suffixes:
            return f"a single file of {each.name}; name it in a manifest, or give a folder of such files"
    return f"unknown kind of file: {READ}"


def refuse_compressed(path: str) -> None:
    """Raise UserError for the name of a compressed file, with the command that unpacks it."""
    if _UNPACK in advice(path):
        raise UserError(f"{path}: {advice(path)}")


def check_unicode(text: str) -> str:
    """Return `text`. Raises UserError if it contains half of a surrogate pair, which JSON allows and UTF-8 does not."""
    half = next((character for character in text if "\ud800" <= character <= "\udfff"), None)
    if half is not None:
        raise UserError(f"the text is not Unicode: it contains half of a surrogate pair (\\u{ord(half):x})")
    return text
