"""Readers: paths ──▶ random-access documents and media, read from disk one at a time.

Place in the flow: 2, used by `data/sources.py`. The path decides the reader: `.jsonl`, `.parquet`, `.tar` (one file, a
folder of them, or a pattern), or a folder of pictures or sounds.
    files ◀── rows ◀── parquet, tar, folder;  files ◀── jsonl
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from ...errors import UserError
from ..formats import advice
from .files import Location
from .folder import FolderRows
from .jsonl import JsonLines
from .parquet import ParquetRows
from .rows import Rows
from .tar import TarRows

__all__ = ["JsonLines", "Rows", "is_manifest", "open_path", "signature"]

SUFFIXES = (".jsonl", ".parquet", ".tar")


def open_path(path: str, columns: Mapping[str, str]) -> JsonLines | Rows:
    """The reader for the files at `path`. Raises UserError if there are none, or none of a kind that is read."""
    root = Location.of(path)
    files = root.files()
    kinds = {file.suffix for file in files} & set(SUFFIXES)
    if not kinds and root.is_folder():
        if columns:
            raise UserError(f"{path}: a folder of files has no columns: its folders are the classes")
        return FolderRows(root, files)
    if not kinds:
        raise UserError(f"{path}: {advice(root.path)}")
    if len(kinds) > 1:
        raise UserError(f"{path}: holds {' and '.join(sorted(kinds))} files; give each kind as a source of its own")
    kind = kinds.pop()
    chosen = [file for file in files if file.suffix == kind]
    if kind == ".parquet":
        return ParquetRows(chosen, columns)
    if kind == ".tar":
        return TarRows(chosen, columns)
    if columns:
        raise UserError(f"{path}: a manifest has no columns: its lines say what each segment is")
    if len(chosen) > 1:
        raise UserError(f"{path}: {len(chosen)} manifests; give each as a source of its own")
    return JsonLines(chosen[0])


def is_manifest(path: str) -> bool:
    """Whether a path is a manifest, whose lines say what each document is."""
    return path.lower().endswith(".jsonl")


def signature(path: str) -> str:
    """16 hex digits that change with the names, sizes and times of the files of a path.

    Files of media that a manifest or a Parquet file names are not included.
    """
    digest = hashlib.sha256()
    for file in Location.of(path).files():
        digest.update(f"{file}\0{file.size()}\0{file.stamp()}\n".encode())
    return digest.hexdigest()[:16]
