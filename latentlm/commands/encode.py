"""`latentlm encode`: encodes sources of any size into shards of latents, which training reads by index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from ..errors import UserError
from .data import path_source

if TYPE_CHECKING:
    from ..config import SourceConfig
    from ..data.encoding.parts import Summary

NUM_SHOWN = 5
"""Number of reasons for skipping that are shown, and of places per reason."""


def encode(
    *sources: str,
    out: str,
    tokenizers: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = (),
    columns: Annotated[tuple[str, ...], Parameter("--column", negative=(), show_default=False)] = (),
    task: str = "all",
    processes: int = 1,
    engine: Literal["local", "ray"] = "local",
    on_error: Literal["stop", "skip"] = "stop",
    dtype: Literal["float32", "float16"] = "float32",
    threads: int | None = None,
) -> None:
    """Encode pictures and sounds of a data set of any size into shards of latents.

    The same command continues an encoding that was interrupted, even by SIGKILL. Train on the result with
    `data.sources=[{shards: OUT}]`.

    Parameters
    ----------
    sources
        JSONL manifests, Parquet files, WebDataset tars, or folders of pictures or sounds in folders named by class, by
        path, pattern or fsspec URL; or names of embedded sources.
    out
        Folder of the shards, or a URL.
    tokenizers
        A trained tokenizer, or a model whose tokenizers to use. May be repeated. Not needed for text.
    columns
        NAME=COLUMN: the Parquet column or tar suffix that holds NAME (text, image or speech). May be repeated.
    task
        Kind of document to make from rows: text_to_image, image_to_text, text_to_speech, speech_to_text, text. Not for
        manifests, whose lines are documents already.
    processes
        Number of processes on this machine, or of actors with --engine ray.
    engine
        local: this machine; ray: the Ray cluster at RAY_ADDRESS, or a new one on this machine.
    on_error
        stop at a document that cannot be read, or skip it and list it at the end.
    dtype
        Type of the latents; float16 halves the size and rounds them to 11 bits.
    threads
        CPU threads per process; default: the free cores.
    """
    from ..data.encoding.plan import Job
    from ..data.encoding.workers import encode as run
    from ..hardware import set_threads

    if not sources:
        raise UserError("name at least one source")
    if processes < 1:
        raise UserError(f"--processes must be at least 1, got {processes}")
    configs = _sources(sources, columns, task)
    job = Job(
        sources=configs,
        tokenizers=_tokenizer_folders(tokenizers),
        out=out,
        dtype=dtype,
        on_error=on_error,
        threads=set_threads(threads, processes=processes),
    )
    print(describe_summary(out, run(job, processes=processes, engine=engine)))


def describe_summary(out: str, summary: Summary) -> str:
    """Lines about the content of the shards, and about the documents left out and why."""
    index = summary.index
    held = ", ".join(f"{count:,} {name}" for name, count in index.num_segments.items())
    latents = ", ".join(f"{count:,} of {name}" for name, count in index.num_latents.items()) or "none"
    lines = [f"{out}: {index.num_documents:,} documents ({held}) in {len(index.parts)} files; latents: {latents}"]
    if summary.num_done_before:
        lines.append(f"    {summary.num_done_before:,} documents had been encoded before")
    if summary.skipped:
        lines.append(f"    skipped {index.num_skipped:,}, all of them in skipped.jsonl:")
    for reason, places in list(summary.skipped.items())[:NUM_SHOWN]:
        more = f" and {len(places) - NUM_SHOWN:,} more" if len(places) > NUM_SHOWN else ""
        lines.append(f"    {len(places):,} × {reason}: {', '.join(places[:NUM_SHOWN])}{more}")
    return "\n".join(lines)


def _sources(names: tuple[str, ...], columns: tuple[str, ...], task: str) -> tuple[SourceConfig, ...]:
    """The sources by name: an embedded one if there is no file of that name, else a path.

    Columns and task apply to files of rows; among those, manifests get neither. UserError for columns if there are no
    files of rows.
    """
    from ..config import SourceConfig
    from ..data.embedded.tasks import EMBEDDED
    from ..data.readers import is_manifest

    embedded = [name for name in names if name in EMBEDDED and not Path(name).exists()]
    manifests = [name for name in names if is_manifest(name)]
    if columns and len(embedded) + len(manifests) == len(names):
        raise UserError(f"--column {columns[0]}: none of {', '.join(names)} has columns")
    found = []
    for name in names:
        if name in embedded:
            found.append(SourceConfig(name=name, task=task))
        elif name in manifests and len(manifests) < len(names):
            found.append(path_source(name, (), "all"))
        else:
            found.append(path_source(name, columns, task))
    return tuple(found)


def _tokenizer_folders(names: tuple[str, ...]) -> dict[str, str]:
    """Modality -> folder of its tokenizer. `names` are tokenizers and models. UserError for two of one modality."""
    from ..checkpoint import config_folder, resolve
    from ..config.modalities import tokenizer_names
    from ..tokenizers.load import load_tokenizer

    found: dict[str, str] = {}
    for name in names:
        folder = config_folder(resolve(name))
        if (folder / "tokenizers").is_dir():
            inside = {reader: folder / "tokenizers" / reader for reader in tokenizer_names()}
            new = {reader: path for reader, path in inside.items() if path.is_dir()}
        else:
            new = {load_tokenizer(folder).modality: folder}
        for reader, path in new.items():
            if reader in found:
                raise UserError(f"--tokenizers {name}: a tokenizer of {reader} is given already, {found[reader]}")
            found[reader] = str(path)
    return found
