"""docs/recipes.md is complete: it is what its generator writes, and every key of every recipe is described there."""

import importlib.util
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

ROOT = Path(__file__).parents[2]


def load_generator():
    spec = importlib.util.spec_from_file_location("make_recipes", ROOT / "docs" / "make_recipes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_recipes = load_generator()


def test_the_page_is_what_the_generator_writes():
    committed = make_recipes.PAGE.read_text(encoding="utf-8")
    assert committed == make_recipes.page(), "run: python docs/make_recipes.py"


def test_every_key_has_a_description():
    assert make_recipes.undescribed() == []


def test_a_section_as_a_table():
    class InnerConfig(BaseModel):
        """Something | <small>."""

        count: int | None = Field(None, gt=0, description="how many")
        sizes: tuple[int, ...] = Field((1, 2), min_length=1, description="of <EOD>")

    class OuterConfig(BaseModel):
        kind: Literal["a", "b"] = "a"
        rate: float = Field(ge=0, le=1)
        inner: InnerConfig | None = None
        by_name: dict[str, InnerConfig] = Field({}, description="more")

    assert make_recipes.section(OuterConfig).splitlines()[2:] == [
        '| `kind` | `a`, `b`; `"a"` |  |',
        "| `rate` | number, at least 0, at most 1; **required** |  |",
        "| `inner` | [section](#inner) or null; `null` |  |",
        "| `by_name` | mapping (text: [section](#inner)); `{}` | more |",
    ]
    assert make_recipes.section(InnerConfig).splitlines() == [
        r"Something \| &lt;small>.",
        "",
        "| key | value; default | |",
        "|---|---|---|",
        "| `count` | integer or null, above 0; `null` | how many |",
        "| `sizes` | list of integer, not empty; `[1, 2]` | of &lt;EOD> |",
    ]
    assert list(make_recipes.sections(OuterConfig)) == [OuterConfig, InnerConfig]
