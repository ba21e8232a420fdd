"""What the tokenizers lose: pictures and sound through encoder and decoder, without the language model.

Place in the flow: media ──▶ latents (posterior means) ──▶ media, held out where the data hold anything out.
Pictures: PSNR at the tokenizer's own size. Sound: STOI and wide-band PESQ where `pystoi` and `pesq` are installed
(extra `eval`), and the recogniser's rate. These bound what generation can reach.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..data.embedded import digits, emoji, shapes, speech
from ..generation.generate import Pipeline
from ..types import Audio
from .protocol import Protocol
from .recogniser import available as recogniser_available
from .report import Report
from .speech import judge_of, real_said

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

RATE = 16000


def evaluate_images(pipeline: Pipeline, protocol: Protocol, report: Report) -> None:
    """PSNR of digits (held out), shapes (held out) and emoji."""
    num = protocol.counts.reconstructions
    sets = {
        "digits": [item.image for item in digits.load("held_out")[:num]],
        "shapes": [shapes.scene("held_out", index, 1).image for index in range(num)],
        "emoji": [item.image for item in emoji.load("train")[:num]],
    }
    tokenizer = pipeline.tokenizers["image"]
    for name, images in sets.items():
        pixels = _pixels(images, tokenizer.config.image_size)
        decoded = tokenizer.decode([latents.mean for latents in tokenizer.encode(images)])
        kind = "the atlas (which has no held-out part)" if name == "emoji" else "held-out pictures"
        report.add(
            f"reconstruction.{name}_psnr",
            psnr(_pixels(decoded, tokenizer.config.image_size), pixels),
            f"dB, mean over {len(images)} of {kind}; posterior means, no language model",
            reference=psnr(pixels.mean((1, 2), keepdim=True).expand_as(pixels), pixels),
            reference_name="each picture's mean colour",
        )


def evaluate_speech(pipeline: Pipeline, protocol: Protocol, report: Report) -> None:
    """STOI and PESQ of held-out phrases, the recogniser's rate on held-out digit words."""
    tokenizer = pipeline.tokenizers["speech"]
    real = speech.load("held_out")
    how = "held-out voices; posterior means, no language model"
    spoken = [item.audio for item in real if item.kind == "phrase"][: protocol.counts.reconstructions // 3]
    decoded = through(tokenizer, spoken)
    for name, metric in (("stoi", stoi), ("pesq", pesq)):
        package = {"stoi": "pystoi", "pesq": "pesq"}[name]
        if importlib.util.find_spec(package) is None:
            report.leave_out(f"reconstruction.speech_{name}", f"{package} is not installed (extra eval)")
            continue
        values = [metric(a, b) for a, b in zip(spoken, decoded, strict=True)]
        report.add(
            f"reconstruction.speech_{name}",
            float(np.mean(values)),
            f"mean over {len(values)} phrases of {how}, 16 kHz",
            reference={"stoi": 1.0, "pesq": 4.64}[name],
            reference_name="identical sound",
        )
    if recogniser_available():
        judge, words = judge_of("digit"), real_said("digit")
        heard = [judge.hear(audio) for audio in through(tokenizer, [item.audio for item in words])]
        report.add(
            "reconstruction.speech_word_accuracy",
            float(np.mean([a == item.text for a, item in zip(heard, words, strict=True)])),
            f"{len(words)} digit words of {how}; pocketsphinx with a grammar of the ten words",
            reference=float(np.mean([item.right for item in words])),
            reference_name="the clips themselves",
        )
    else:
        report.leave_out("reconstruction.speech_word_accuracy", "pocketsphinx is not installed (extra demo)")


def through(tokenizer, clips: Sequence[Audio]) -> list[Audio]:
    """Clips through encoder and decoder."""
    return tokenizer.decode([latents.mean for latents in tokenizer.encode(list(clips))])


def _pixels(images: Sequence[PILImage], size: int) -> Tensor:
    """Pictures -> (B, size, size, 3) in [0, 1], fitted as the tokenizer does."""
    from ..tokenizers.media import image_to_tensor

    return (torch.stack([image_to_tensor(image, size) for image in images]).permute(0, 2, 3, 1) + 1) / 2


def psnr(output: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures (B, …) in [0, 1]: the mean over pictures, each at most 100."""
    errors = (output - target).double().square().flatten(1).mean(1)
    return float((-10 * errors.clamp_min(1e-10).log10()).mean())


def stoi(reference: Audio, degraded: Audio) -> float:
    """Short-time objective intelligibility, 0..1."""
    from pystoi import stoi as measure

    return float(measure(*_aligned(reference, degraded), RATE))


def pesq(reference: Audio, degraded: Audio) -> float:
    """Wide-band PESQ (ITU-T P.862.2), 1.04..4.64."""
    from pesq import pesq as measure

    return float(measure(RATE, *_aligned(reference, degraded), "wb"))


def _aligned(reference: Audio, degraded: Audio) -> tuple[np.ndarray, np.ndarray]:
    """Both at 16 kHz, cut to the shorter."""
    from ..tokenizers.media import resample

    first, second = (resample(audio, RATE).samples.detach().float().cpu().numpy() for audio in (reference, degraded))
    num = min(len(first), len(second))
    return first[:num], second[:num]
