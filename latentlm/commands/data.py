"""`latentlm data`: list, show and check data."""

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
    help="Show and check the data that models are trained on.",
    help_epilogue=examples("latentlm data list", "latentlm data preview emoji", "latentlm data validate mine.jsonl"),
)


@app.command(name="list", sort_key=1)
def list_data() -> None:
    """List the data that come with the package: names, tasks, sizes, licences."""
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
    """Show the first documents of a source, one per line, conditions in brackets.

    Parameters
    ----------
    name
        Embedded source, JSONL manifest, Parquet file, tar, folder of pictures or sounds, or shards.
    num
        Number of documents, per task.
    out
        Folder to write the pictures, sounds, and plots of other media to.
    task
        Kind of document to make from rows: text_to_image, image_to_text, … Needed for Parquet, tars and folders.
    columns
        NAME=COLUMN: the Parquet column or tar suffix that holds NAME (text, image or speech). May be repeated.
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
    help_epilogue=examples(
        "latentlm data validate mine.jsonl",
        "latentlm data validate mine.jsonl --recipe my_recipe.yaml",
        "latentlm data validate photos --task text_to_image",
    ),
)
def validate(
    name: str,
    /,
    *,
    task: str = "all",
    columns: Annotated[tuple[str, ...], Parameter("--column", negative=(), show_default=False)] = (),
    recipe: str | None = None,
) -> None:
    """Read every document of a source; stop at the first error and say where it is.

    Parameters
    ----------
    name
        JSONL manifest, Parquet file, tar, folder of pictures or sounds, or shards; see docs/data_format.md.
    task
        Kind of document to make from rows: text_to_image, image_to_text, … Needed for Parquet, tars and folders.
    columns
        NAME=COLUMN: the Parquet column or tar suffix that holds NAME (text, image or speech). May be repeated.
    recipe
        Recipe or run of a model: also encode each document with its tokenizers, and find those that do not fit
        `data.sequence_length`.
    """
    from ..config import SourceConfig
    from ..data.embedded.tasks import EMBEDDED

    if name in EMBEDDED and not Path(name).exists():
        raise UserError(f"{name} comes with the package and needs no check; look at it with `latentlm data preview`")
    is_manifest = _is_manifest(name)
    if is_manifest:
        _refuse_for_manifest(name, columns, task)
        _validate_manifest(Path(name))
    else:
        _validate_rows(name, _rows_or_shards(name, columns, task))
    if recipe is not None:
        source = SourceConfig(manifest=name) if is_manifest else _rows_or_shards(name, columns, task)
        _validate_for(recipe, source)


def _validate_manifest(path: Path) -> None:
    from ..data.manifest import read
    from ..data.manifest import validate as check
    from ..data.script_report import spoken_text

    report = check(path, quiet=False)
    segments = ", ".join(f"{count} {name}" for name, count in report.num_segments.items() if count)
    files = ", ".join(f"{count} {name}" for name, count in report.num_files.items() if count) or "none"
    print(f"{path}: {report.num_documents} documents, segments: {segments}")
    print(f"    files: {files} | {report.num_characters} characters of text, {report.seconds:.1f} s of sound")
    report.notice()
    _print_speakers((f"{path}:{line.number}", spoken_text(line.document.segments)) for line in read(path))


def _print_speakers(texts: Iterable[tuple[str, str | None]]) -> None:
    """A line on the speakers of the scripts among `texts`, each given with its place, where there are any."""
    from ..data.script_report import describe_speakers

    for line in describe_speakers(texts):
        print(f"    {line}")


def _validate_rows(name: str, source: SourceConfig) -> None:
    from ..data.placed import place_of
    from ..data.script_report import spoken_text
    from ..data.sources import documents
    from ..data.validation import validate_documents

    found = documents(source)
    report = validate_documents(found, name, quiet=False)
    segments = ", ".join(f"{count} {name}" for name, count in report.num_segments.items() if count)
    print(f"{name}: {report.num_documents} documents, all of them can be read; segments: {segments}")
    print(f"    {report.num_characters} characters of text, {report.seconds:.1f} s of sound")
    report.notice()
    _print_speakers((place_of(found, n, name), spoken_text(found[n].segments)) for n in range(len(found)))


def _validate_for(recipe: str, source: SourceConfig) -> None:
    """Check the documents of a source against the tokenizers and the row length of a recipe, or of a run's."""
    from ..config import load_recipe, recipe_names
    from ..config.kinds import KINDS
    from ..training.check_data import check_data

    run = Path(recipe) / "recipe.yaml"
    named = run if recipe not in recipe_names() and run.is_file() else recipe
    loaded = load_recipe(named, {"data.sources": [source.model_dump(mode="json", exclude_defaults=True)]})
    if KINDS[loaded.kind].no_model is not None:
        raise UserError(f"--recipe {recipe}: is of kind {loaded.kind}; name the recipe of a model")
    (documents,) = check_data(loaded)
    print(f"    {recipe}: {len(documents)} documents fit rows of {loaded.data.sequence_length} positions")


def _is_manifest(name: str) -> bool:
    """Whether `name` is read as a manifest: any file on this machine except Parquet and tar.

    JSONL files by URL or pattern are read as paths, line by line.
    """
    from ..data.readers import is_manifest

    path = Path(name)
    if path.is_file():
        return path.suffix.lower() not in (".parquet", ".tar")
    return is_manifest(name) and "://" not in name and not set(name) & set("*?[")


def _refuse_for_manifest(name: str, columns: tuple[str, ...], task: str) -> None:
    if columns or task != "all":
        given = f"--column {columns[0]}" if columns else f"--task {task}"
        raise UserError(f"{given}: for rows only; each line of the manifest {name} is a document already")


def _rows_or_shards(name: str, columns: tuple[str, ...], task: str) -> SourceConfig:
    """The source at a path, or shards. UserError for columns or a task that do not fit."""
    if (Path(name) / "index.json").is_file():
        return path_source(name, columns, task, key="shards")
    return path_source(name, columns, task)


def path_source(path: str, columns: tuple[str, ...], task: str, key: str = "path") -> SourceConfig:
    """The source with the given path, NAME=COLUMN items and task. UserError if one of them is wrong."""
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
    """A document in one line. With `stem`, its media are written to STEM_0.png, STEM_1.wav, …"""
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
