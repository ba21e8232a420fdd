"""Write docs/recipes.md, the reference of every recipe key, from the pydantic models of `latentlm/config`.

    python docs/make_recipes.py

`tests/docs/test_recipe_reference.py` fails where the page is not what this writes, or a key has no description.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from inspect import getdoc
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from latentlm.config.kinds import KINDS
from latentlm.config.modalities import modality, modality_names, tokenizer_names

PAGE = Path(__file__).with_name("recipes.md")

HEAD = """# Recipe keys

Every key of a recipe, by section. Written by `python docs/make_recipes.py` from the schema: do not edit it by hand.

A recipe is a YAML file with a `kind`. `--set a.b=VALUE` changes the key `b` of section `a`; an entry of a list goes by
its number: `data.sources.0.weight`. Packaged recipes: [latentlm/recipes](../latentlm/recipes). Which values suit your
data: [choosing.md](choosing.md).
"""

TYPES = {int: "integer", float: "number", bool: "true or false", str: "text", NoneType: "null"}
BOUNDS = {"gt": "above {}", "ge": "at least {}", "lt": "below {}", "le": "at most {}", "min_length": "not empty"}


def sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """`model` and every model that its fields hold, each once, in the order of the fields."""
    found: dict[type[BaseModel], None] = {}

    def visit(each: type[BaseModel]) -> None:
        if each not in found:
            found[each] = None
            for field in each.model_fields.values():
                for inner in models(field.annotation):
                    visit(inner)

    visit(model)
    yield from found


def models(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation names, inside lists, mappings, unions and `Annotated`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in models(part)]


def undescribed() -> list[str]:
    """Keys without a description, as Section.key."""
    every = {each for spec in KINDS.values() for each in sections(spec.config)}
    return sorted(
        f"{model.__name__}.{name}"
        for model in every
        for name, field in model.model_fields.items()
        if not field.description
    )


def page() -> str:
    """The whole of docs/recipes.md."""
    parts, seen = [HEAD], set()
    for kind, spec in KINDS.items():
        for number, model in enumerate(sections(spec.config)):
            if model in seen:
                continue
            seen.add(model)
            title = f"`kind: {kind}`" if number == 0 else title_of(model)
            parts.append(f"{'##' if number == 0 else '###'} {title}\n\n{section(model)}")
    return "\n".join(parts)


def section(model: type[BaseModel]) -> str:
    """What the section is, and its keys as a table."""
    own = "__doc__" in vars(model) and model.__doc__
    text = escaped(getdoc(model)) + "\n\n" if own else ""
    rows = [row(name, field) for name, field in model.model_fields.items()]
    if model.__name__ == "TokenizersConfig":
        rows += [
            f"| `{name}` | text or null; {'null' if name in needless() else 'needed where the data have it'} | "
            "folder of a trained tokenizer, of a model that has one, or a packaged model |"
            for name in tokenizer_names()
        ]
    return text + "\n".join(["| key | value; default | |", "|---|---|---|", *rows]) + "\n"


def needless() -> set[str]:
    """Tokenizers that a recipe may leave out: second ones, and those that are made from the data."""
    return set(tokenizer_names()) - {name for name in modality_names() if modality(name).from_data is None}


def row(name: str, field: FieldInfo) -> str:
    """One line of a table: key, type and default, description."""
    value = "; ".join(part for part in (limited(field.annotation, field.metadata), default_of(field)) if part)
    return f"| `{name}` | {value} | {escaped(field.description or '')} |"


def limited(annotation: Any, metadata: Iterable[Any]) -> str:
    """A type in words with its limits: "integer, above 0"."""
    return ", ".join([kind_of(annotation), *limits(metadata)])


def limits(metadata: Iterable[Any]) -> Iterator[str]:
    """The bounds that annotated_types and pydantic's fields state, in words."""
    for entry in metadata:
        if isinstance(entry, FieldInfo):
            yield from limits(entry.metadata)
        else:
            stated = {name: getattr(entry, name, None) for name in BOUNDS}
            yield from (
                BOUNDS[name].format("2^63" if value == 2**63 else value)
                for name, value in stated.items()
                if value is not None
            )


def kind_of(annotation: Any) -> str:
    """A type in words; a section as a link."""
    origin, members = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return limited(members[0], members[1:])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(kind_of(member) for member in members))
    if origin is Literal:
        return ", ".join(f"`{member}`" for member in members)
    if origin is tuple:
        return f"list of {kind_of(members[0])}"
    if origin is dict:
        return f"mapping ({kind_of(members[0])}: {kind_of(members[1])})"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[section](#{anchor(title_of(annotation))})"
    return TYPES[annotation]


def default_of(field: FieldInfo) -> str:
    """The default as YAML and JSON write it; nothing for a section, whose own keys have theirs, and a single value."""
    if field.is_required():
        return "**required**"
    if get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1:
        return ""
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return ""
    return f"`{escaped(json.dumps(value, ensure_ascii=False))}`"


def title_of(model: type[BaseModel]) -> str:
    """RopeScalingConfig -> Rope scaling, RecipeModelConfig -> Model."""
    words = re.findall(r"[A-Z][a-z]*", model.__name__.removesuffix("Config").removeprefix("Recipe"))
    title = " ".join(words).lower()
    return title[0].upper() + title[1:]


def anchor(title: str) -> str:
    """The anchor that GitHub gives to a heading."""
    return title.lower().replace(" ", "-")


def escaped(text: str) -> str:
    """`text` for a cell of a table: on one line, nothing in it read as a table's border or as HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
