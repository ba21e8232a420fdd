"""Reconstruction by the tokenizers: pictures and sound through encoder and decoder, without the language model.

Place in the flow: media ──▶ latents (posterior means) ──▶ media; of embedded sources the held-out part.
Pictures: PSNR at the tokenizer's own size. Sound: STOI and wide-band PESQ where `pystoi` and `pesq` are installed
(extra `eval`), and the recogniser's rate. Generation cannot be better than these.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ..data.embedded import digits, emoji, shapes, speech
from ..media.sound import Audio
from ..tokenizers.base import Tokenizer
from .protocol import Protocol
from .recogniser import available as recogniser_available
from .report import Report
from .speech import real_utterances, recogniser_of

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

RATE = 16000
SHORTEST_SECONDS = 0.5
"""Shortest clip that STOI and PESQ can judge."""
HOW = "posterior means, no language model"
EMBEDDED_SETS = {"digits": "image", "shapes": "image", "emoji": "image", "speech": "speech"}
"""The embedded media that are reconstructed, and their modality."""
RECONSTRUCTED = ("image", "speech")
"""The modalities whose reconstruction is measured."""


def evaluate_reconstruction(
    tokenizers: Mapping[str, Tokenizer],
    protocol: Protocol,
    report: Report,
    sets: Collection[str] = EMBEDDED_SETS,
) -> None:
    """Reconstruct the embedded media named in `sets`, keys of EMBEDDED_SETS, by the tokenizers of their modality.

    What cannot be measured is noted in the report.
    """
    pictures = [name for name in EMBEDDED_SETS if name in sets and name != "speech"]
    if pictures:
        reason = missing_requirement(tokenizers, "image", ())
        if reason:
            report.leave_out("reconstruction.image", reason)
        else:
            _embedded_images(tokenizers["image"], protocol, report, pictures)
    if "speech" in sets:
        reason = missing_requirement(tokenizers, "speech", ("espeakng_loader",))
        if reason:
            report.leave_out("reconstruction.speech", reason)
        else:
            _embedded_speech(tokenizers["speech"], protocol, report)


def missing_requirement(
    tokenizers: Mapping[str, Tokenizer], modality: str | None, packages: Sequence[str]
) -> str | None:
    """Why a part cannot be measured: the model lacks the modality, or packages are not installed; None: it can."""
    if modality is not None and modality not in tokenizers:
        return f"the model has no {modality}"
    return missing_packages(packages)


def missing_packages(packages: Sequence[str]) -> str | None:
    """Which of `packages` are not installed and how to install them, in words; None if all are installed."""
    missing = [name for name in packages if find_spec(name) is None]
    names = " ".join(name.replace("_", "-") for name in missing)
    return f"{' and '.join(missing)} not installed: pip install {names}" if missing else None


def _embedded_images(tokenizer: Tokenizer, protocol: Protocol, report: Report, sets: Sequence[str]) -> None:
    """PSNR of the digits (held out), the shapes (held out) and the emoji, as far as `sets` names them."""
    num = protocol.counts.reconstructions
    loads: dict[str, Callable[[], list[PILImage]]] = {
        "digits": lambda: [item.image for item in digits.load("held_out")[:num]],
        "shapes": lambda: [shapes.scene("held_out", index, 1).image for index in range(num)],
        "emoji": lambda: [item.image for item in emoji.load("train")[:num]],
    }
    for name in sets:
        images = loads[name]()
        kind = "pictures of the atlas (which has no held-out part)" if name == "emoji" else "held-out pictures"
        reconstruct_images(tokenizer, report, f"reconstruction.{name}", images, kind)


def _embedded_speech(tokenizer: Tokenizer, protocol: Protocol, report: Report) -> None:
    """STOI and PESQ of held-out phrases, and the rate of held-out digit words that the recogniser hears."""
    real = speech.load("held_out")
    spoken = [item.audio for item in real if item.kind == "phrase"][: protocol.counts.reconstructions // 3]
    reconstruct_speech(tokenizer, report, "reconstruction.speech", spoken, "phrases of held-out voices")
    if recogniser_available():
        judge, words = recogniser_of("digit"), real_utterances("digit")
        heard = [judge.hear(audio) for audio in through(tokenizer, [item.audio for item in words])]
        report.add(
            "reconstruction.speech_word_accuracy",
            float(np.mean([a == item.text for a, item in zip(heard, words, strict=True)])),
            f"{len(words)} digit words of held-out voices; {HOW}; pocketsphinx with a grammar of the ten words",
            reference=float(np.mean([item.right for item in words])),
            reference_name="the clips themselves",
        )
    else:
        report.leave_out(
            "reconstruction.speech_word_accuracy", "pocketsphinx is not installed: pip install pocketsphinx"
        )


def reconstruct_images(
    tokenizer: Tokenizer, report: Report, name: str, images: Sequence[PILImage], what: str
) -> list[PILImage]:
    """The reconstructed pictures; adds the figure `name`_psnr."""
    pixels, decoded = _pixels(tokenizer, images), through(tokenizer, images)
    report.add(
        f"{name}_psnr",
        psnr(_pixels(tokenizer, decoded), pixels),
        f"dB, mean over {len(images)} {what}; {HOW}",
        reference=psnr(pixels.mean((1, 2), keepdim=True).expand_as(pixels), pixels),
        reference_name="each picture's mean colour",
    )
    return decoded


def reconstruct_speech(
    tokenizer: Tokenizer, report: Report, name: str, clips: Sequence[Audio], what: str
) -> list[Audio]:
    """The reconstructed clips; adds the figures `name`_stoi and `name`_pesq, over clips that are long enough."""
    decoded = through(tokenizer, clips)
    pairs = [pair for pair in zip(clips, decoded, strict=True) if pair[0].seconds >= SHORTEST_SECONDS]
    for metric, package, best in ((stoi, "pystoi", 1.0), (pesq, "pesq", 4.64)):
        figure = f"{name}_{metric.__name__}"
        if find_spec(package) is None:
            report.leave_out(figure, f"{package} is not installed: pip install {package}")
            continue
        values = [value for value in (metric(*pair) for pair in pairs) if value is not None]
        if not values:
            report.leave_out(figure, f"no clip of {SHORTEST_SECONDS} s or more with speech")
            continue
        how = f"mean over {len(values)} {what}, 16 kHz; {HOW}"
        report.add(figure, float(np.mean(values)), how, reference=best, reference_name="identical sound")
    return decoded


def through(tokenizer: Tokenizer, media: Sequence) -> list:
    """The media decoded from their posterior means."""
    return tokenizer.decode([latents.mean for latents in tokenizer.encode(list(media))])


def _pixels(tokenizer: Tokenizer, images: Sequence[PILImage]) -> Tensor:
    """Pictures -> (B, S, S, 3) in [0, 1], fitted to the square of the tokenizer as it fits them."""
    return (tokenizer.batch(list(images)).media.cpu().permute(0, 2, 3, 1) + 1) / 2


def psnr(output: Tensor, target: Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB of pictures (B, …) in [0, 1]; that of each is at most 100."""
    errors = (output - target).double().square().flatten(1).mean(1)
    return float((-10 * errors.clamp_min(1e-10).log10()).mean())


def stoi(reference: Audio, degraded: Audio) -> float:
    """Short-time objective intelligibility, 0..1."""
    from pystoi import stoi as measure

    return float(measure(*_aligned(reference, degraded), RATE))


def pesq(reference: Audio, degraded: Audio) -> float | None:
    """Wide-band PESQ (ITU-T P.862.2), 1.04..4.64; None where it finds no utterance."""
    from pesq import NoUtterancesError
    from pesq import pesq as measure

    try:
        return float(measure(RATE, *_aligned(reference, degraded), "wb"))
    except NoUtterancesError:
        return None


def _aligned(reference: Audio, degraded: Audio) -> tuple[np.ndarray, np.ndarray]:
    """The samples of both at 16 kHz, cut to the shorter of the two."""
    from ..media.sound import resample

    first, second = (resample(audio, RATE).samples.detach().float().cpu().numpy() for audio in (reference, degraded))
    num = min(len(first), len(second))
    return first[:num], second[:num]
