"""The closed language of the embedded speech: ten digit words and about 240 short phrases, some of them held out.

Place in the flow: texts for `speech`. Every word of a held-out phrase occurs in the train phrases; only the combination
is new.
"""

from __future__ import annotations

from functools import cache

import numpy as np

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = ("red", "green", "blue", "yellow", "purple", "black")
THINGS = ("apples", "birds", "stars", "boats", "houses", "flowers")
SHAPES = ("circle", "square", "triangle", "cross", "ring")
SIDES = ("top", "bottom", "left", "right")
GREETINGS = (
    "hello there", "good morning", "good evening", "good night", "thank you", "see you soon", "how are you",
    "very well thank you", "hello my friend", "good night my friend", "see you in the morning", "nice to see you",
)  # fmt: skip
NUM_COUNTED, NUM_PLACED, NUM_COLOURED = 130, 70, 28
NUM_HELD_OUT = 40
HELD_OUT = "seven red apples"
"""Always held out, so that the example of the documentation was never spoken in training."""


def phrases(split: str = "train") -> tuple[str, ...]:
    """The phrases of "train" (200) or "held_out" (40), in a fixed shuffled order, without the digit words."""
    return _splits()[split]


@cache
def _splits() -> dict[str, tuple[str, ...]]:
    generator = np.random.default_rng(0)
    counted = [f"{number} {colour} {thing}" for number in DIGITS[2:] for colour in COLOURS for thing in THINGS]
    placed = [f"a {colour} {shape} at the {side}" for colour in COLOURS for shape in SHAPES for side in SIDES]
    coloured = [f"the {thing} are {colour}" for thing in THINGS for colour in COLOURS]
    chosen = [
        text
        for texts, number in ((counted, NUM_COUNTED), (placed, NUM_PLACED), (coloured, NUM_COLOURED))
        for text in generator.permutation(texts)[:number].tolist()
    ]
    if HELD_OUT not in chosen:
        chosen[0] = HELD_OUT
    chosen.remove(HELD_OUT)
    order = generator.permutation(chosen).tolist()
    held_out = (HELD_OUT, *order[: NUM_HELD_OUT - 1])
    train = [*order[NUM_HELD_OUT - 1 :], *GREETINGS]
    return {"held_out": held_out, "train": tuple(generator.permutation(train).tolist())}
