"""A generated world of coloured shapes: 32×32 scenes with captions, questions, and exact checks of both directions.

Place in the flow: raw items for `data.sources`. A scene is one or two things, each a (colour, shape, place) at one of
nine places; its index seeds everything about it, so any scene can be made by itself and is the same everywhere.
One thing in eight (as a combination of colour, shape and place) is held out whole: no train scene shows one, every
thing of a held-out scene is one. Drawings are scored exactly: `recognise` reads a picture back by template matching,
`parse_caption` and `answer` do the same for text. Small shifts and sizes vary, so that pictures of one caption differ.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from ...errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

SIZE = 32
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (250, 205, 20),
    "purple": (150, 60, 190),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
ROWS, COLUMNS = ("top", "", "bottom"), ("left", "", "right")
PLACES = {  # name -> centre (x, y) in pixels
    " ".join(filter(None, (row, column))) or "centre": (6.0 + 10 * x, 6.0 + 10 * y)
    for y, row in enumerate(ROWS)
    for x, column in enumerate(COLUMNS)
}
NUM_SCENES = {"train": 4000, "held_out": 400}
RADII = (4.4, 5.0)
SHIFTS = (-1.0, 0.0, 1.0)
BLURS = (0.1, 0.7, 1.1, 1.5, 1.9)
"""Standard deviations in pixels of the templates' blur; the first is none."""
NUMBERS = ("zero", "one", "two")
_SPLIT_SEED = {"train": 1, "held_out": 2}
_OVERSAMPLING = 4


@dataclass(frozen=True)
class Thing:
    """One coloured shape at a place; its name is "red circle", its caption "a red circle at the top left"."""

    colour: str
    shape: str
    place: str

    @property
    def caption(self) -> str:
        return f"a {self.colour} {self.shape} at the {self.place}"


@dataclass(frozen=True)
class Scene:
    """A picture (RGB, 32×32), its things in reading order, its caption, and one question with its answer."""

    image: PILImage
    things: tuple[Thing, ...]
    question: str
    answer: str

    @property
    def caption(self) -> str:
        return " and ".join(thing.caption for thing in self.things)


@cache
def things(split: str) -> tuple[Thing, ...]:
    """The combinations of a split: 236 for "train", 34 for "held_out", in a fixed shuffled order."""
    everything = [Thing(colour, shape, place) for colour in COLOURS for shape in SHAPES for place in PLACES]
    order = np.random.default_rng(0).permutation(len(everything)).tolist()
    num_held_out = round(len(order) / 8)
    chosen = {"held_out": order[:num_held_out], "train": order[num_held_out:]}[split]
    return tuple(everything[index] for index in chosen)


def load(split: str = "train") -> list[Scene]:
    """The scenes of a split that show one thing: 4,000 for "train", 400 for "held_out"."""
    return [scene(split, index) for index in range(NUM_SCENES[split])]


@cache
def scene(split: str, index: int, num_things: int = 1) -> Scene:
    """Scene `index` of a split, with one or two things; the first one cycles through the combinations of the split."""
    generator = np.random.default_rng([_SPLIT_SEED[split], num_things, index])
    pool = things(split)
    chosen = [pool[index % len(pool)]]
    while len(chosen) < num_things:
        # a second thing differs in all three, so that every question about colour, shape or place has one answer
        other = pool[generator.integers(len(pool))]
        if all(getattr(other, field) != getattr(chosen[0], field) for field in ("colour", "shape", "place")):
            chosen.append(other)
    placed = tuple(sorted(chosen, key=lambda thing: list(PLACES).index(thing.place)))
    questions = list(_questions(placed))
    question, reply = questions[generator.integers(len(questions))]
    image = draw(placed, [(*generator.choice(SHIFTS, 2), generator.choice(RADII)) for _ in placed])
    return Scene(image, placed, question, reply)


def draw(placed: tuple[Thing, ...], variations: list[tuple[float, float, float]] | None = None) -> PILImage:
    """The picture of some things on white; a variation is (shift x, shift y, radius) in pixels, one per thing."""
    from PIL import Image

    canvas = np.full((SIZE, SIZE, 3), 255.0)
    for thing, (x, y, radius) in zip(placed, variations or [(0.0, 0.0, RADII[-1])] * len(placed), strict=True):
        alpha = _coverage(thing.shape, thing.place, x, y, radius)[..., None]
        canvas = canvas * (1 - alpha) + np.array(COLOURS[thing.colour]) * alpha
    return Image.fromarray(np.round(canvas).astype(np.uint8))


def recognise(image: PILImage) -> Thing | None:
    """The thing that a picture of one thing shows; None if it is empty. Other sizes are scaled to 32×32 first.

    Matched filter over renders of every combination, some blurred, since a drawing may be soft and pale: with
    D = picture - white, mask m and ink c = colour - white, the combination of the largest cos(D, m⊗c). Empty where
    it explains less than half of what is not white or is fainter than a tenth of its ink.
    """
    from PIL import Image

    picture = image.convert("RGB")
    if picture.size != (SIZE, SIZE):
        picture = picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    difference = (np.asarray(picture, dtype=np.float32) - 255).reshape(-1, 3)  # (pixels, 3)
    masks, labels = _templates()  # (templates, pixels), of norm 1
    ink = np.array(list(COLOURS.values()), dtype=np.float32) - 255
    ink_norm = np.linalg.norm(ink, axis=1)
    match = masks @ difference @ (ink / ink_norm[:, None]).T  # (templates, colours)
    template, colour = np.unravel_index(match.argmax(), match.shape)
    strength = match[template, colour] * masks[template].max() / ink_norm[colour]
    if match[template, colour] ** 2 < 0.5 * (difference**2).sum() or strength < 0.1:
        return None
    return Thing(list(COLOURS)[colour], *labels[template])


def parse_caption(text: str) -> tuple[Thing, ...]:
    """The things that a caption names, in reading order. UserError if it is not a caption of this world."""
    return tuple(_parse_thing(part) for part in text.strip().split(" and "))


def answer(placed: tuple[Thing, ...], question: str) -> str:
    """The answer to a question about some things. UserError for a question that is unknown or has no single answer."""
    replies = {reply for asked, reply in _questions(placed) if asked == question}
    if len(replies) != 1:
        raise UserError(f"question {question!r} has no single answer for {' and '.join(t.caption for t in placed)!r}")
    return replies.pop()


def sentence(split: str, index: int) -> str:
    """A plain sentence about scene `index` (one thing or, for odd indices, two), without its picture."""
    num_things = 1 + index % 2
    shown = scene(split, index, num_things)
    verb = "is" if num_things == 1 else "are"
    return f"there {verb} {shown.caption}. {shown.question} {shown.answer}."


def _questions(placed: tuple[Thing, ...]) -> Iterator[tuple[str, str]]:
    yield "how many shapes are there?", NUMBERS[len(placed)]
    for thing in placed:
        yield f"what colour is the {thing.shape}?", thing.colour
        yield f"what shape is {thing.colour}?", thing.shape
        yield f"where is the {thing.colour} {thing.shape}?", thing.place
        yield f"what is at the {thing.place}?", f"a {thing.colour} {thing.shape}"


def _parse_thing(text: str) -> Thing:
    words = text.split()
    thing = Thing(words[1], words[2], " ".join(words[5:])) if len(words) > 5 else None
    known = thing and thing.colour in COLOURS and thing.shape in SHAPES and thing.place in PLACES
    if not known or thing.caption != " ".join(words):
        raise UserError(f"not a caption of this world: {text!r} (e.g. 'a red circle at the top left')")
    return thing


@cache
def _templates() -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Masks (templates, pixels) of every shape, place, shift, radius and blur, and the (shape, place) of each."""
    masks, labels = [], []
    pixels = np.arange(SIZE)
    for blur in BLURS:
        kernel = np.exp(-0.5 * ((pixels[:, None] - pixels[None, :]) / blur) ** 2)
        kernel /= kernel.sum(1, keepdims=True)
        for shape, place, x, y, radius in itertools.product(SHAPES, PLACES, SHIFTS, SHIFTS, RADII):
            mask = (kernel @ _coverage(shape, place, x, y, radius) @ kernel.T).reshape(-1)
            masks.append(mask / np.linalg.norm(mask))
            labels.append((shape, place))
    return np.stack(masks).astype(np.float32), labels


@cache
def _coverage(shape: str, place: str, shift_x: float, shift_y: float, radius: float) -> np.ndarray:
    """How much of each pixel a shape covers, (SIZE, SIZE) in [0, 1], by averaging over sub-pixels."""
    centre_x, centre_y = PLACES[place]
    grid = (np.arange(SIZE * _OVERSAMPLING) + 0.5) / _OVERSAMPLING
    x = (grid[None, :] - centre_x - shift_x) / radius
    y = (grid[:, None] - centre_y - shift_y) / radius
    inside = _INSIDE[shape](x, y)
    return inside.reshape(SIZE, _OVERSAMPLING, SIZE, _OVERSAMPLING).mean((1, 3))


_INSIDE = {  # whether points are inside a shape of radius 1 about the origin, y pointing down
    "circle": lambda x, y: x**2 + y**2 <= 1,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 0.9,
    "triangle": lambda x, y: (y <= 0.9) & (y >= 1.9 * abs(x) - 1),
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) <= 0.3) & (np.maximum(abs(x), abs(y)) <= 1),
    "ring": lambda x, y: (x**2 + y**2 <= 1) & (x**2 + y**2 >= 0.3),
}
