"""Reads YAML and JSON into configurations; errors are one line that names file and key."""

from __future__ import annotations

import difflib
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, Tag, ValidationError

from ..errors import UserError, notice
from .base import RecipeError, did_you_mean
from .kinds import KINDS
from .recipes import Recipe
from .renamed import current_name

MOST_NAMED = 3
"""Most keys of other sections that a message names."""


def recipe_names() -> list[str]:
    """Names of the packaged recipes."""
    folder = resources.files("latentlm") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name_or_path: str | Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """A recipe by packaged name or YAML path; `overrides` maps dotted keys ("training.steps") to values.

    An override of model.backbone replaces the recipe's transformer and text tokenizer. Raises RecipeError, one line
    that names file and key, with the most similar known key if there is one.
    """
    path = Path(name_or_path)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise RecipeError(f"{path}: no such recipe file")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise RecipeError(f"{path}: not UTF-8 text at byte {error.start}") from None
    elif str(name_or_path) in recipe_names():
        text = (resources.files("latentlm") / "recipes" / f"{name_or_path}.yaml").read_text(encoding="utf-8")
    else:
        raise RecipeError(f"no recipe {str(name_or_path)!r}{did_you_mean(str(name_or_path), recipe_names())}")
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{name_or_path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{name_or_path}: a recipe is a mapping with a `kind`")
    if (overrides or {}).get("model.backbone") is not None:
        overrides = {"model.transformer": None, "tokenizers.text": {"kind": "backbone"}} | overrides
    for key, value in (overrides or {}).items():
        _set(raw, current_name(key), value)
    return parse_recipe(raw, str(name_or_path))


def parse_recipe(raw: dict[str, Any], origin: str = "recipe") -> Recipe:
    """Validate a plain mapping. Raises RecipeError as `load_recipe`."""
    kind = raw.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        found = "missing" if kind is None else f"no kind {kind!r}{did_you_mean(str(kind), KINDS)}"
        raise RecipeError(f"{origin}: kind: {found}; one of {', '.join(KINDS)}")
    config = KINDS[kind].config
    renamed: set[tuple[str, str]] = set()
    try:
        recipe = config.model_validate(raw, context={"renamed": renamed})
    except ValidationError as error:
        raise RecipeError(f"{origin}: {describe(error, config)}") from None
    for old, new in sorted(renamed):
        notice(f"{origin}: {old} is called {new} now; the old name is still read")
    return recipe


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError, which names the file, if it is missing or holds something else."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise UserError(f"{path}: not a JSON object")
    return fields


def describe(error: ValidationError, model: type[BaseModel] | None) -> str:
    """A pydantic error as one line: the first wrong key, the reason, and the most similar known key.

    Unknown keys come before missing ones, since an unknown key may be the missing one misspelt.
    """
    errors = error.errors()
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    location = list(first["loc"])
    key = ".".join(str(part) for part in _keys(model, location))
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}{_nearest_key(key, _known_keys(model, location[:-1]), model)}"
    if first["type"] == "union_tag_invalid":
        kind, known = first["ctx"]["tag"], re.findall("'([^']*)'", first["ctx"]["expected_tags"])
        return f"{key}.kind: no kind {kind!r}{did_you_mean(kind, known)}"
    message = re.sub(r"\btuple\b", "list", first["msg"].removeprefix("Value error, ").replace("Tuple", "List"))
    if first["type"] == "value_error" and isinstance(first["input"], dict):  # of a section: it names its keys itself
        return f"{key}: {message}" if key else message
    return f"{key or 'kind'}: {message}, got {str(first['input'])[:80]!r}"


def dotted_keys(model: type[BaseModel]) -> list[str]:
    """Every key of a configuration with its sections: "training.optimizer.schedule"; 0 stands for a place in a list.

    Keys inside a mapping whose keys the user chooses (`model.heads`) are left out.
    """
    found: list[str] = []
    for name, field in model.model_fields.items():
        inner = [key for section in _sections(field.annotation) for key in dotted_keys(section)]
        place = f"{name}.0" if get_origin(field.annotation) is tuple else name
        found += [name, *(f"{place}.{key}" for key in dict.fromkeys(inner))]
    return found


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The configurations that a field annotated so may hold: itself, members of a union, entries of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is dict:
        return []
    return [section for member in get_args(annotation) for section in _sections(member)]


def _nearest_key(key: str, known: list[str], model: type[BaseModel] | None) -> str:
    """The end of a message about the unknown dotted `key`, whose section has the keys `known`: the nearest key.

    A key of this very name in another section comes first, then a similar one here, then a similar one elsewhere.
    """
    *section, name = key.split(".")
    here = ".".join(["0" if part.isdecimal() else part for part in section] + [name])
    elsewhere = [dotted for dotted in (dotted_keys(model) if model else []) if dotted != here]
    names = {dotted: dotted.split(".")[-1] for dotted in elsewhere}
    found = [dotted for dotted in elsewhere if names[dotted] == name]
    if not found and not difflib.get_close_matches(name, known, cutoff=0.7):
        close = difflib.get_close_matches(name, set(names.values()), n=1, cutoff=0.85)
        found = [dotted for dotted in elsewhere if names[dotted] in close]
    nearby = [dotted for dotted in found if dotted.split(".")[0] == key.split(".")[0]]
    best = (nearby or found)[:MOST_NAMED]
    return f", did you mean {' or '.join(map(repr, best))}?" if best else did_you_mean(name, known)


def _keys(annotation: Any, location: list) -> list:
    """The keys of `location` as they are in the file, without the tags that pydantic inserts for unions."""
    keys = []
    for part in location:
        if _member(annotation, part) is None:
            keys.append(part)
        annotation = _entry(annotation, part)
    return keys


def _member(annotation: Any, tag: str | int) -> Any:
    """The member of a union annotation with this tag; None if there is none."""
    members = get_args(annotation)
    if get_origin(annotation) in (dict, tuple):
        return None
    if any(isinstance(member, Tag) and member.tag == tag for member in members):
        return members[0]
    return next((found for member in members if (found := _member(member, tag)) is not None), None)


def _known_keys(annotation: Any, location: list) -> list[str]:
    """The keys of the model at `location` below `annotation`; empty if there is no model."""
    for part in location:
        annotation = _entry(annotation, part)
    members = [annotation, *get_args(annotation)]
    model = next((m for m in members if isinstance(m, type) and issubclass(m, BaseModel)), None)
    return list(model.model_fields) if model else []


def _entry(annotation: Any, part: str | int) -> Any:
    """The annotation of `part` below `annotation`: a key of a model or dict, a place of a tuple, or a union's tag."""
    members = get_args(annotation)
    if (tagged := _member(annotation, part)) is not None:
        return tagged
    if get_origin(annotation) in (dict, tuple):
        return members[1] if get_origin(annotation) is dict else members[0]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation.model_fields[part].annotation if part in annotation.model_fields else None
    return next((found for member in members if (found := _entry(member, part)) is not None), None)


def _set(raw: dict[str, Any], dotted: str, value: Any) -> None:
    """Set raw[a][0][b] = value for "a.0.b". Missing sections are created, missing entries of lists are not."""
    *parents, last = dotted.split(".")
    place: Any = raw
    for parent, following in zip(parents, [*parents, last][1:], strict=True):
        place = place[_index(place, parent, dotted)] if isinstance(place, list) else place.setdefault(parent, {})
        if not isinstance(place, dict | list):
            raise RecipeError(f"override {dotted!r}: {parent!r} has no key {following!r}, it is {str(place)[:40]!r}")
    place[_index(place, last, dotted) if isinstance(place, list) else last] = value


def _index(entries: list, part: str, dotted: str) -> int:
    if part.isdecimal() and int(part) < len(entries):
        return int(part)
    raise RecipeError(f"override {dotted!r}: there is no entry {part!r}; the {len(entries)} entries count from 0")
