"""Digits and emoji: pictures drawn for a word, and words read from a picture.

Place in the flow: pipeline ──▶ drawings and words ──▶ figures and galleries of the report.
The prompt of a digit is its word. A judge classifies each drawing, and the Fréchet distance compares the whole set with
real digits. The prompt of an emoji is its name; each has one picture, so the figure measures memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..data import documents
from ..data.embedded import digits, emoji
from ..errors import UserError
from ..generation.pipeline import Pipeline
from .judge import NUM_CLASSES, Scans, accuracy, compare, load_judge, real_scans, to_scans
from .protocol import Protocol, answer_media, answer_text, ask, before_answer
from .report import Exhibit, Gallery, Report, interval

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

SHOWN_DIGITS, SHOWN_CAPTIONS, SHOWN_EMOJI = 10, 24, 48


# ------------------------------------------------------------------ digits


def evaluate_digits(pipeline: Pipeline, protocol: Protocol, report: Report) -> None:
    """Draw digits of every class and compare them with real ones; write the words of the held-out digits."""
    drawn, labels = _draw_digits(pipeline, protocol)
    _score_drawn_digits(drawn, labels, protocol, report)
    _read_digits(pipeline, protocol, report)


def _draw_digits(pipeline: Pipeline, protocol: Protocol) -> tuple[list[PILImage], list[int]]:
    examples = {item.label: item for item in digits.load("train")}
    labels = [k for _ in range(protocol.counts.digits_per_class) for k in range(NUM_CLASSES)]
    prompts = [before_answer(documents.text_to_image(digits.WORDS[k], examples[k].image)) for k in labels]
    return [answer_media(output) for output in ask(pipeline, prompts, "image", protocol, "digits")], labels


def _score_drawn_digits(drawn: list[PILImage], labels: list[int], protocol: Protocol, report: Report) -> None:
    judge, held_out = load_judge(), real_scans("held_out")
    real_accuracy = accuracy(judge, held_out)
    scans = Scans(to_scans(drawn), torch.tensor(labels))
    num, word = len(labels), "prompt: the word alone"
    how = protocol.describe(f"{num} drawn, {num // NUM_CLASSES} per class, {word}", "digits")
    name_of_judge = "small CNN trained on the 1,500 real training digits, averaged down to 8×8"
    rate = accuracy(judge, scans)
    report.add(
        "digits.prompt_accuracy",
        rate,
        f"{how}; classified by the packaged judge ({name_of_judge})",
        reference=real_accuracy,
        reference_name="real held-out digits",
        interval=interval(rate, num),
    )
    report.add("digits.judge_accuracy", real_accuracy, f"{name_of_judge}; {len(held_out.labels)} real held-out digits")
    found = compare(scans, real_scans("all"), judge, protocol.counts.draws, protocol.seed)
    pairs = f"{found.num_draws} random draws of {found.size} against {found.size}, classes balanced"
    frechet = f"{how}; Fréchet distance in the judge's penultimate features, mean of {pairs}; reference set: 1,797 real"
    report.add(
        "digits.frechet_ratio",
        found.ratio,
        f"{frechet}; divided by the mean distance of disjoint halves of the real digits, same draws and sizes",
        reference=1.0,
        reference_name="real against real",
    )
    report.add("digits.frechet", found.distance, f"{frechet}; standard deviation {found.deviation:.2g}")
    report.add(
        "digits.frechet_real",
        found.real_distance,
        f"real against real, disjoint halves, {pairs}; standard deviation {found.real_deviation:.2g}",
    )
    right = (judge.classify(scans.values) == scans.labels).tolist()
    shown = SHOWN_DIGITS * NUM_CLASSES
    exhibits = (
        Exhibit(digits.WORDS[k], picture=image, mark=ok)
        for image, k, ok in zip(drawn[:shown], labels, right, strict=False)
    )
    note = "One column per word, which is the whole prompt; not selected. Red: the judge saw another digit."
    report.galleries.append(Gallery("digits", "Digits drawn", note, tuple(exhibits), NUM_CLASSES))


def _read_digits(pipeline: Pipeline, protocol: Protocol, report: Report) -> None:
    items = digits.load("held_out")[: protocol.counts.captions]
    prompts = [before_answer(documents.image_to_text(item.image, item.word)) for item in items]
    answers = [answer_text(output) for output in ask(pipeline, prompts, "text", protocol, "digits")]
    right = [answer == item.word for answer, item in zip(answers, items, strict=True)]
    report.add(
        "digits.caption_accuracy",
        float(np.mean(right)),
        protocol.describe(f"{len(items)} held-out digits, picture → word, exact match"),
        reference=1 / NUM_CLASSES,
        reference_name="chance",
        interval=interval(float(np.mean(right)), len(right)),
    )
    order = sorted(range(len(items)), key=lambda index: right[index])  # mistakes first
    exhibits = (
        Exhibit(f"is {items[i].word}", answers[i], right[i], picture=items[i].image) for i in order[:SHOWN_CAPTIONS]
    )
    note = "Held-out scans and the words that the model wrote; mistakes first."
    report.galleries.append(Gallery("captions", "Digits read", note, tuple(exhibits)))


# ------------------------------------------------------------------ emoji


def evaluate_emoji(
    pipeline: Pipeline, protocol: Protocol, report: Report, emoji_names: Sequence[str] | None = None
) -> None:
    """Draw emoji by name and find the nearest picture of the atlas. emoji_names: those trained on; None: all."""
    everything = emoji.load("train")
    trained = _named(everything, emoji_names)
    order = np.random.default_rng(0).permutation(len(trained))[: protocol.counts.emoji]
    asked = [trained[index] for index in sorted(order.tolist())]
    prompts = [before_answer(documents.text_to_image(item.name, item.image)) for item in asked]
    drawn = [answer_media(output) for output in ask(pipeline, prompts, "image", protocol, "emoji")]
    pixels, atlas = to_pixels(drawn), to_pixels([item.image for item in everything])
    place = {item.name: index for index, item in enumerate(everything)}
    among = torch.tensor([place[item.name] for item in trained])
    wanted = torch.tensor([place[item.name] for item in asked])
    right = among[nearest(pixels, atlas[among])] == wanted
    right_all = nearest(pixels, atlas) == wanted
    rate, rate_all = float(right.float().mean()), float(right_all.float().mean())
    how = protocol.describe(f"{len(asked)} names in lower case, all trained on, so this measures memory", "emoji")
    metric = "by mean squared error of the pixels"
    report.add(
        "emoji.top1",
        rate,
        f"{how}; of the {len(trained)} pictures trained on, the named one is nearest to the drawing, {metric}",
        reference=1 / len(trained),
        reference_name="chance",
        interval=interval(rate, len(asked)),
    )
    report.add(
        "emoji.top1_all",
        rate_all,
        f"{how}; of all {len(everything)} pictures in the atlas, the named one is nearest to the drawing, {metric}",
        reference=1 / len(everything),
        reference_name="chance",
        required=(">=", 0.95) if len(trained) == len(everything) else None,
        interval=interval(rate_all, len(asked)),
    )
    exhibits = tuple(
        Exhibit(item.name, picture=image, reference=item.image, mark=bool(ok))
        for item, image, ok in zip(asked, drawn, right, strict=True)
    )[:SHOWN_EMOJI]
    note = (
        "Left the real picture, right the drawing for its name. The model was trained on these "
        f"{len(trained)} pictures, one per name: this shows memory."
    )
    report.galleries.append(Gallery("emoji", "Emoji drawn from memory", note, exhibits))


def _named(everything: list[emoji.Emoji], names: Sequence[str] | None) -> list[emoji.Emoji]:
    if names is None:
        return everything
    by_name = {item.name: item for item in everything}
    for name in names:
        if name not in by_name:
            raise UserError(f"emoji_names: there is no emoji named {name!r}")
    return [by_name[name] for name in names]


def to_pixels(images: Sequence[PILImage], size: int = emoji.SIZE) -> Tensor:
    """Pictures of any size -> (B, size·size·3) in [0, 1]."""
    from PIL import Image

    resized = (
        image.convert("RGB") if image.size == (size, size) else image.convert("RGB").resize((size, size), Image.BICUBIC)
        for image in images
    )
    arrays = [np.asarray(image, dtype=np.float32) for image in resized]
    return torch.from_numpy(np.stack(arrays)).flatten(1) / 255


def nearest(pixels: Tensor, candidates: Tensor) -> Tensor:
    """For each of `pixels` (B, P), the index of the candidate (K, P) at the least square distance, (B,)."""
    # ‖x − c‖² = ‖x‖² − 2 x·c + ‖c‖², and ‖x‖² is the same for all candidates
    return (candidates.double().square().sum(1) - 2 * pixels.double() @ candidates.double().T).argmin(1)
