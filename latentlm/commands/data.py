"""`latentlm data`: what a model can be trained on, and whether a manifest is right."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from .examples import examples

if TYPE_CHECKING:
    from ..types import Document

app = App(
    name="data",
    sort_key=5,
    help="See what a model can be trained on.",
    help_epilogue=examples("latentlm data list", "latentlm data preview emoji", "latentlm data validate mine.jsonl"),
)


@app.command(name="list", sort_key=1)
def list_data() -> None:
    """The data that comes with the package: names, tasks, sizes, licences."""
    from ..data.sources import list_sources

    for source in list_sources():
        sizes = ", ".join(f"{count:,} {split}" for split, count in source.sizes.items())
        print(f"{source.name}: {source.description}")
        print(f"    tasks {', '.join(source.tasks)} | items {sizes} | {source.licence}")


@app.command(
    sort_key=2,
    help_epilogue=examples("latentlm data preview shapes --out runs/look", "latentlm data preview mine.jsonl -n 3"),
)
def preview(name: str, /, *, num: Annotated[int, Parameter(alias="-n")] = 5, out: Path | None = None) -> None:
    """The first documents of a source, a line each: what is given stands in brackets.

    Parameters
    ----------
    name
        Name of an embedded source, or path of a JSONL manifest.
    num
        Documents to show, of each task.
    out
        Folder to which the pictures and sounds of an embedded source are written.
    """
    from ..config import SourceConfig
    from ..data.manifest import preview as preview_manifest
    from ..data.sources import documents, get_source

    if num < 1:
        raise ValueError(f"--num must be at least 1, got {num}")
    if name.endswith(".jsonl") or Path(name).is_file():
        if out is not None:
            raise ValueError(f"--out {out}: the pictures and sounds of a manifest are files already")
        print("\n".join(preview_manifest(name, num)))
        return
    tasks = get_source(name).tasks
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        found = documents(SourceConfig(name=name, task=task))
        for number, document in enumerate(islice(found, num), start=1):
            print(f"{task} {number}: {_describe(document, None if out is None else out / f'{task}_{number}')}")


@app.command(sort_key=3, help_epilogue=examples("latentlm data validate mine.jsonl"))
def validate(manifest: Path, /) -> None:
    """Read every line and every file of a JSONL manifest; stops at the first that is wrong and says where.

    Parameters
    ----------
    manifest
        Path of the JSONL file; the format is described in docs/data_format.md.
    """
    from ..data.manifest import validate as check

    report = check(manifest)
    segments = ", ".join(f"{count} {name}" for name, count in report.num_segments.items() if count)
    files = ", ".join(f"{count} {name}" for name, count in report.num_files.items() if count) or "none"
    print(f"{manifest}: {report.num_documents} documents, segments: {segments}")
    print(f"    files: {files} | {report.num_characters} characters of text, {report.seconds:.1f} s of sound")


def _describe(document: Document, stem: Path | None) -> str:
    """One line; media are written beside `stem`, numbered, where one is given."""
    from ..config.modalities import modality
    from ..types import Text

    parts = []
    for position, segment in enumerate(document.segments):
        if isinstance(segment, Text):
            part = repr(segment.text if len(segment.text) <= 60 else segment.text[:57] + "...")
        else:
            found = modality(segment.modality)
            part = f"{found.name} {found.describe(segment.content)}"
            if stem is not None:
                found.save(segment.content, f"{stem}_{position}{found.written[0]}")
        parts.append(f"[{part}]" if segment.condition else part)
    return " ".join(parts)
