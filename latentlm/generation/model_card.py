"""The model card: README.md of a model's folder, with the front matter that the Hugging Face hub reads.

Place in the flow: 4, beside `Pipeline.save` and `latentlm push`, which write it. Everything in it is read from the
files of the folder; what only its author knows (intended use, licence) is left to be filled in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

from ..checkpoint import config_folder, read_metadata
from ..config import read_json
from ..config.modalities import modality_names, tokenizer_names
from ..data.embedded.tasks import EMBEDDED
from ..weights import write_text

CARD = "README.md"
LICENCE = "unknown"
"""The hub's identifier for a licence that has not been chosen."""

PIPELINE_TAGS = {("image",): "text-to-image", ("speech",): "text-to-speech", (): "text-generation"}
"""The hub's task by modalities; several modalities are "any-to-any"."""

FIGURE_KINDS = ("protocol.", "reference.", "reference_name.", "required.")
"""Keys of an evaluation's JSON that describe a figure instead of being one."""

TO_FILL_IN = "*To be filled in by the author.*"


def write_card(folder: Path, evaluation: str | Path | None = None) -> None:
    """Write README.md of the model in `folder`. Arguments and errors as `model_card`."""
    write_text(folder / CARD, model_card(folder, evaluation))


def model_card(folder: Path, evaluation: str | Path | None = None) -> str:
    """The card of the model in `folder`, as Markdown.

    evaluation: a JSON file that `latentlm evaluate --out` wrote; its figures become a table. Raises UserError, one
    line, for a file that is missing or not a JSON object.
    """
    fields = read_json(folder / "config.json")
    metadata = read_metadata(folder)
    figures = {} if evaluation is None else read_json(Path(evaluation))
    sections = {
        "Intended use": TO_FILL_IN,
        "How to load it": _usage(fields),
        "Model": _model(folder, fields),
        "Training data": _data(metadata),
        "Figures": _figures(figures),
        "Recipe": _recipe(metadata),
        "Licence": f"{TO_FILL_IN} Then set `license` at the top of this file.",
    }
    body = "\n".join(f"## {title}\n\n{text}\n" for title, text in sections.items())
    description = metadata.get("recipe", {}).get("description") or "A model of text, images and speech."
    return f"---\n{_front_matter(fields)}---\n\n# LatentLM\n\n{description[:1].upper()}{description[1:]}\n\n{body}"


def parameters_by_part(folder: Path) -> dict[str, int]:
    """The number of parameters of each part of the model and of its tokenizers, read from the headers of the files."""
    tied = read_json(folder / "config.json")["model"]["transformer"]["tied_embeddings"]
    counts: dict[str, int] = {}
    for name, number in _sizes(folder / "model.safetensors"):
        part = ".".join(name.split(".")[: 2 if name.startswith(("heads.", "embed_")) else 1]).removesuffix(".weight")
        if not (tied and part == "text_head"):
            counts[part] = counts.get(part, 0) + number
    for name in tokenizer_names():
        path = config_folder(folder) / "tokenizers" / name / "model.safetensors"
        if path.is_file():
            counts[f"{name} tokenizer"] = sum(number for _, number in _sizes(path))
    return counts


def _sizes(path: Path) -> Iterator[tuple[str, int]]:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 — not a dict
            yield name, math.prod(file.get_slice(name).get_shape())


def _front_matter(fields: Mapping[str, Any]) -> str:
    names = tuple(name for name in modality_names() if name in fields["modalities"])
    tags = ["latentlm", "next-token-diffusion", "arxiv:2412.08635", *names]
    front = {"library_name": "latentlm", "license": LICENCE, "tags": tags}
    return yaml.safe_dump(front | {"pipeline_tag": PIPELINE_TAGS.get(names, "any-to-any")}, sort_keys=False)


def _usage(fields: Mapping[str, Any]) -> str:
    target = next((name for name in ("image", "speech") if name in fields["modalities"]), "text")
    return (
        "```python\nimport latentlm\n\n"
        'model = latentlm.load("OWNER/NAME")  # its name on the hub, or the path of this folder\n'
        f'print(model.generate("a prompt", to="{target}"))\n```'
    )


def _model(folder: Path, fields: Mapping[str, Any]) -> str:
    context = fields["model"]["transformer"]["context_length"]
    spans = [
        f"- {name}: {spec['num_latents'] or 'any number of'} latents of {spec['latent_dim']} channels"
        for name, spec in fields["modalities"].items()
    ]
    counts = parameters_by_part(folder)
    rows = [f"| {part} | {number:,} |" for part, number in (counts | {"all": sum(counts.values())}).items()]
    reads = f"Modalities (the context has {context:,} positions):\n\n- text: {fields['vocab_size']:,} tokens"
    return "\n".join([reads, *spans, "", "| part | parameters |", "|---|---|", *rows])


def _data(metadata: Mapping[str, Any]) -> str:
    sources = metadata.get("recipe", {}).get("data", {}).get("sources", [])
    lines = [_source(source) for source in sources]
    for key, text in (("converted_from", "Converted from"), ("adapter", "With the adapter")):
        if key in metadata:
            lines.append(f"- {text} `{metadata[key]}`")
    start = metadata.get("recipe", {}).get("model", {})
    for key in ("start", "backbone"):
        if start.get(key):
            lines.append(f"- Began from `{start[key]}`")
    return "\n".join(lines) or TO_FILL_IN


def _source(source: Mapping[str, Any]) -> str:
    task, name = source.get("task", "all"), source.get("name")
    if name in EMBEDDED:
        return f"- {name} ({task}): {EMBEDDED[name].description}; {EMBEDDED[name].licence}"
    place = next(str(source[key]) for key in ("name", "manifest", "path", "shards") if source.get(key))
    return f"- `{Path(place).name}` ({task})"


def _figures(figures: Mapping[str, Any]) -> str:
    measured = {
        name: value
        for name, value in figures.items()
        if isinstance(value, int | float) and not name.startswith(FIGURE_KINDS)
    }
    if not measured:
        return "Not measured. `latentlm evaluate` measures a model."
    rows = []
    for name, value in measured.items():
        reference = figures.get(f"reference.{name}")
        beside = "" if reference is None else f"{reference:.4g} ({figures.get(f'reference_name.{name}', '')})"
        rows.append(f"| {name} | {value:.4g} | {beside} | {figures.get(f'protocol.{name}', '')} |")
    return "\n".join(["| figure | value | reference | protocol |", "|---|---|---|---|", *rows])


def _recipe(metadata: Mapping[str, Any]) -> str:
    recipe = metadata.get("recipe")
    if recipe is None:
        return "Not trained by a recipe."
    step = f" It has taken {metadata['step']:,} steps." if "step" in metadata else ""
    text = yaml.safe_dump(recipe, sort_keys=False)
    return f"`latentlm train recipe.yaml` trains it again.{step}\n\n<details>\n\n```yaml\n{text}```\n\n</details>"
