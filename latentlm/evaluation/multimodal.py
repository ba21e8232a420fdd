"""The shapes world: drawings, descriptions and answers for combinations that were not in training.

Place in the flow: pipeline ──▶ drawings and sentences ──▶ exact checks of `data.embedded.shapes` ──▶ the report.
"""

from __future__ import annotations

import numpy as np

from ..data import documents
from ..data.embedded import shapes
from ..generation.pipeline import Pipeline
from .protocol import Protocol, answer_media, answer_text, ask, before_answer
from .report import Exhibit, Gallery, Report, interval

SHOWN_DRAWN, SHOWN_READ = 24, 16
SPLITS = {"held_out": "held-out combinations of colour, shape and place", "train": "combinations seen in training"}
NAMES = {"held_out": "held_out", "train": "seen"}


def evaluate_shapes(pipeline: Pipeline, protocol: Protocol, report: Report) -> None:
    """Draw and describe held-out and seen combinations; answer questions about held-out pictures."""
    for split in ("held_out", "train"):
        scenes = [shapes.scene(split, index, 1) for index in range(protocol.counts.shapes)]
        _draw(pipeline, protocol, report, scenes, split)
        _describe(pipeline, protocol, report, scenes, split)
    mixed = [shapes.scene("held_out", index, 1 + index % 2) for index in range(protocol.counts.shapes)]
    _answer(pipeline, protocol, report, mixed)


def _draw(pipeline: Pipeline, protocol: Protocol, report: Report, scenes: list[shapes.Scene], split: str) -> None:
    prompts = [before_answer(documents.text_to_image(scene.caption, scene.image)) for scene in scenes]
    drawn = [answer_media(output) for output in ask(pipeline, prompts, "image", protocol, "shapes")]
    seen = [shapes.recognise(image) for image in drawn]
    wanted = [scene.things[0] for scene in scenes]
    right = [a == b for a, b in zip(seen, wanted, strict=True)]
    scored = "colour, shape and place right by template matching"
    how = protocol.describe(f"{len(scenes)} captions of {SPLITS[split]}", "shapes")
    _rate(report, f"shapes.{NAMES[split]}_draw_accuracy", right, f"{how}; {scored}", _reader(scenes), "real pictures")
    for part in ("colour", "shape", "place"):
        matches = [a is not None and getattr(a, part) == getattr(b, part) for a, b in zip(seen, wanted, strict=True)]
        _rate(report, f"shapes.{NAMES[split]}_draw_{part}", matches, f"{how}; the {part} alone right", None, "")
    if split == "held_out":
        exhibits = tuple(
            Exhibit(
                scene.caption, "" if ok else f"seen as {thing.caption if thing else 'nothing'}", ok, image, scene.image
            )
            for scene, image, thing, ok in zip(scenes, drawn, seen, right, strict=True)
        )
        note = "Left a real picture of the caption, right the drawing. No training picture shows these combinations."
        report.galleries.append(Gallery("shapes", "Shapes drawn, never seen", note, exhibits[:SHOWN_DRAWN]))


def _describe(pipeline: Pipeline, protocol: Protocol, report: Report, scenes: list[shapes.Scene], split: str) -> None:
    prompts = [before_answer(documents.image_to_text(scene.image, scene.caption)) for scene in scenes]
    answers = [answer_text(output) for output in ask(pipeline, prompts, "text", protocol, "shapes")]
    right = [answer == scene.caption for answer, scene in zip(answers, scenes, strict=True)]
    how = protocol.describe(f"{len(scenes)} pictures of {SPLITS[split]}, picture → caption, exact match")
    chance = 1 / (len(shapes.COLOURS) * len(shapes.SHAPES) * len(shapes.PLACES))
    _rate(report, f"shapes.{NAMES[split]}_caption_accuracy", right, how, chance, "chance")
    if split == "held_out":
        exhibits = tuple(
            Exhibit(f"is {scene.caption}", answer, ok, scene.image)
            for scene, answer, ok in zip(scenes, answers, right, strict=True)
        )
        note = "Pictures of combinations that were not in training, and the captions that the model wrote."
        report.galleries.append(Gallery("shapes-read", "Shapes described", note, exhibits[:SHOWN_READ]))


def _answer(pipeline: Pipeline, protocol: Protocol, report: Report, scenes: list[shapes.Scene]) -> None:
    prompts = [before_answer(documents.question(scene.image, scene.question, scene.answer)) for scene in scenes]
    answers = [answer_text(output) for output in ask(pipeline, prompts, "text", protocol, "shapes")]
    right = [answer == scene.answer for answer, scene in zip(answers, scenes, strict=True)]
    how = protocol.describe(f"{len(scenes)} questions about pictures of {SPLITS['held_out']}, one or two, exact match")
    common = max(np.unique([scene.answer for scene in scenes], return_counts=True)[1]) / len(scenes)
    _rate(report, "shapes.answer_accuracy", right, how, float(common), "the most frequent answer")
    exhibits = tuple(
        Exhibit(scene.question, answer, ok, scene.image)
        for scene, answer, ok in zip(scenes, answers, right, strict=True)
    )
    note = "Questions about held-out pictures, and the model's answers."
    report.galleries.append(Gallery("answers", "Questions answered", note, exhibits[:SHOWN_READ]))


def _reader(scenes: list[shapes.Scene]) -> float:
    """The share of real pictures that the template matching recognises."""
    return float(np.mean([shapes.recognise(scene.image) == scene.things[0] for scene in scenes]))


def _rate(report: Report, name: str, right: list[bool], how: str, reference: float | None, reference_name: str) -> None:
    rate = float(np.mean(right))
    report.add(name, rate, how, reference=reference, reference_name=reference_name, interval=interval(rate, len(right)))
