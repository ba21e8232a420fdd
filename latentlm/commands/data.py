"""`latentlm data`: what a model can be trained on, and whether a manifest is right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from ..errors import UserError
from .examples import examples

if TYPE_CHECKING:
    from ..config import SourceConfig
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
    help_epilogue=examples(
        "latentlm data preview shapes --out runs/look",
        "latentlm data preview mine.jsonl -n 3",
        "latentlm data preview a.parquet --task text_to_image --column image=jpg",
        "latentlm data preview shards/train",
    ),
)
def preview(
    name: str,
    /,
    *,
    num: Annotated[int, Parameter(alias="-n")] = 5,
    out: Path | None = None,
    task: str = "all",
    columns: Annotated[tuple[str, ...], Parameter("--column", negative=(), show_default=False)] = (),
) -> None:
    """The first documents of a source, a line each: what is given stands in brackets.

    Parameters
    ----------
    name
        Name of an embedded source, path of a JSONL manifest, Parquet file, tar or folder of pictures, or of shards.
    num
        Documents to show, of each task.
    out
        Folder for the pictures, the sounds, and plots of other media.
    task
        Which documents the rows of a path make: text_to_image, image_to_text, …
    columns
        NAME=COLUMN: which column of a Parquet file, or suffix in a tar, holds text, image or speech. May be repeated.
    """
    from ..config import SourceConfig
    from ..data.embedded.tasks import EMBEDDED
    from ..data.manifest import Manifest
    from ..data.manifest import preview as preview_manifest
    from ..data.sources import documents, get_source

    if num < 1:
        raise UserError(f"--num must be at least 1, got {num}")
    if name not in EMBEDDED and _is_manifest(name):
        _refuse_for_manifest(name, columns, task)
        if out is None:
            print("\n".join(preview_manifest(name, num)))
        else:
            _show(Manifest(name), num, out)
        return
    if name not in EMBEDDED and (Path(name).exists() or set(name) & set("./*")):
        _show(documents(_rows_or_shards(name, columns, task)), num, out)
        return
    source = get_source(name)
    if columns:
        raise UserError(f"--column {columns[0]}: an embedded source has no columns")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    for each in source.tasks if task == "all" else (task,):
        found = documents(SourceConfig(name=name, task=each))
        for number, document in enumerate(islice(found, num), start=1):
            print(f"{each} {number}: {_describe(document, None if out is None else out / f'{each}_{number}')}")


@app.command(
    sort_key=3,
    help_epilogue=examples("latentlm data validate mine.jsonl", "latentlm data validate set.tar --task speech_to_text"),
)
def validate(
    name: str,
    /,
    *,
    task: str = "all",
    columns: Annotated[tuple[str, ...], Parameter("--column", negative=(), show_default=False)] = (),
) -> None:
    """Read every document of a manifest, path or shards; stops at the first that is wrong and says where.

    Parameters
    ----------
    name
        JSONL manifest, Parquet file, tar, folder of pictures, or shards; the formats are in docs/data_format.md.
    task
        Which documents the rows make: text_to_image, image_to_text, …
    columns
        NAME=COLUMN: which column of a Parquet file, or suffix in a tar, holds text, image or speech. May be repeated.
    """
    from ..data.manifest import read
    from ..data.manifest import validate as check
    from ..data.placed import place_of
    from ..data.script_report import spoken_text
    from ..data.sources import documents

    if not _is_manifest(name):
        found = documents(_rows_or_shards(name, columns, task))
        print(f"{name}: {len(found)} documents, all of them can be read")
        _print_speakers((place_of(found, n, name), spoken_text(found[n].segments)) for n in range(len(found)))
        return
    _refuse_for_manifest(name, columns, task)
    manifest = Path(name)
    report = check(manifest)
    segments = ", ".join(f"{count} {name}" for name, count in report.num_segments.items() if count)
    files = ", ".join(f"{count} {name}" for name, count in report.num_files.items() if count) or "none"
    print(f"{manifest}: {report.num_documents} documents, segments: {segments}")
    print(f"    files: {files} | {report.num_characters} characters of text, {report.seconds:.1f} s of sound")
    _print_speakers((f"{manifest}:{line.number}", spoken_text(line.document.segments)) for line in read(manifest))


def _print_speakers(texts: Iterable[tuple[str, str | None]]) -> None:
    """A line on the speakers of the scripts among `texts`, each given with its place, where there are any."""
    from ..data.script_report import describe_speakers

    for line in describe_speakers(texts):
        print(f"    {line}")


def _is_manifest(name: str) -> bool:
    """Whether `name` is read as a whole, as a manifest: a file here, whatever it is called, that is of no other kind.

    URLs and patterns are paths, whose lines are read one by one.
    """
    from ..data.readers import is_manifest

    path = Path(name)
    if path.is_file():
        return path.suffix.lower() not in (".parquet", ".tar")
    return is_manifest(name) and "://" not in name and not set(name) & set("*?[")


def _refuse_for_manifest(name: str, columns: tuple[str, ...], task: str) -> None:
    if columns or task != "all":
        given = f"--column {columns[0]}" if columns else f"--task {task}"
        raise UserError(f"{given}: the lines of the manifest {name} say themselves what is in them")


def _rows_or_shards(name: str, columns: tuple[str, ...], task: str) -> SourceConfig:
    """The source at a path. UserError, one line, where one of them is wrong, or says nothing about shards."""
    if (Path(name) / "index.json").is_file():
        return path_source(name, columns, task, key="shards")
    return path_source(name, columns, task)


def path_source(path: str, columns: tuple[str, ...], task: str, key: str = "path") -> SourceConfig:
    """The source that a path, NAME=COLUMN items and a task describe. UserError, one line, where one is wrong."""
    from pydantic import ValidationError

    from ..config import SourceConfig, describe

    found = {}
    for item in columns:
        name, equals, column = item.partition("=")
        if not equals or not name or not column:
            raise UserError(f"--column {item!r}: write NAME=COLUMN, as in --column image=jpg")
        found[name] = column
    try:
        return SourceConfig(**{key: path}, columns=found, task=task)
    except ValidationError as error:
        raise UserError(describe(error, SourceConfig)) from None


def _show(documents: Sequence[Document], num: int, out: Path | None) -> None:
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    for number, document in enumerate(islice(documents, num)):
        print(f"{number}: {_describe(document, None if out is None else out / str(number))}")


def _describe(document: Document, stem: Path | None) -> str:
    """One line; pictures, sounds and plots of other media are written beside `stem`, numbered, where one is given."""
    from ..config.modalities import modality
    from ..media.picture import save_image
    from ..media.sound import Audio, save_audio
    from ..types import Latents, Text

    parts = []
    for position, segment in enumerate(document.segments):
        if isinstance(segment, Text):
            part = repr(segment.text if len(segment.text) <= 60 else segment.text[:57] + "...")
        elif isinstance(segment.content, Latents):
            part = f"{segment.modality} {' × '.join(map(str, segment.content.mean.shape))} latents"
        else:
            found = modality(segment.modality)
            part = f"{found.name} {found.describe(segment.content)}"
            if stem is not None:
                shown = found.show(segment.content)
                if isinstance(shown, Audio):
                    save_audio(shown, f"{stem}_{position}.wav")
                else:
                    save_image(shown, f"{stem}_{position}.png")
        parts.append(f"[{part}]" if segment.condition else part)
    return " ".join(parts)
