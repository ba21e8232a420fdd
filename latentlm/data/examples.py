"""Media ──▶ training examples of a tokenizer, augmented where the recipe says so; their loader.

Place in the flow: 2, between sources and `MediaLoader`. An example depends only on the medium and the random numbers
of its batch, so a resumed run and any number of workers make the same examples. Legend: `S` samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ..config import ConvImageTokenizerConfig, ImageTokenizerConfig, MediaConfig, SpeechTokenizerConfig
from ..config.modalities import modalities
from ..media.picture import image_to_rgb, image_to_tensor, to_square
from ..media.sound import Audio
from ..tokenizers.speech import prepare_clip
from .loader import MediaLoader
from .sources import media

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

TokenizerConfig = ImageTokenizerConfig | ConvImageTokenizerConfig | SpeechTokenizerConfig


def open_media_loader(
    config: MediaConfig,
    tokenizer: TokenizerConfig,
    seed: int,
    num_lanes: int,
    rank: int = 0,
    world: int = 1,
    sources: Sequence[Sequence] | None = None,
) -> MediaLoader:
    """The loader of a tokenizer's recipe, which makes batches on demand. Raises UserError as `sources.media`.

    sources: the media, if they are open already.
    """
    name = next(each.name for each in modalities() if tokenizer.kind in each.tokenizers)
    if sources is None:
        sources = [media(source, name, "train") for source in config.sources]
    keep = not any(source.is_on_disk for source in config.sources)
    prepare = EXAMPLES[name](tokenizer, config, keep)
    return MediaLoader(
        sources,
        [source.weight for source in config.sources],
        prepare,
        batch_size=config.batch_size,
        seed=seed,
        num_lanes=num_lanes,
        rank=rank,
        world=world,
    )


def _image_example(tokenizer: ImageTokenizerConfig, config: MediaConfig, keep: bool) -> ImageExample:
    return ImageExample(tokenizer.image_size, tokenizer.fit, flip=config.flip, crop=config.crop, keep=keep)


def _speech_example(tokenizer: SpeechTokenizerConfig, config: MediaConfig, keep: bool) -> SpeechExample:
    return SpeechExample(tokenizer, config.seconds, gain=config.gain, keep=keep)


EXAMPLES: dict[str, Callable] = {"image": _image_example, "speech": _speech_example}
"""Modality -> function of (tokenizer config, the recipe's data, whether to keep results) that makes its examples."""


class _Kept:
    """Calls `make(medium)`; with `keep`, once per medium. Only for media that stay in memory themselves."""

    def __init__(self, make: Callable, keep: bool):
        self._make, self._keep = make, keep
        self._known: dict[int, tuple[object, Tensor]] = {}

    def __call__(self, medium: PILImage | Audio) -> Tensor:
        if not self._keep:
            return self._make(medium)
        if id(medium) not in self._known:
            self._known[id(medium)] = (medium, self._make(medium))
        return self._known[id(medium)][1]


class ImageExample:
    """A picture as (3, size, size) in [-1, 1], made square by `fit` (`media.picture.resize_square`).

    crop: a square of it at random; flip: mirrored every second time.
    """

    def __init__(self, size: int, fit: str = "crop", *, flip: bool = False, crop: float = 0.0, keep: bool = False):
        self.size, self.fit, self.flip, self.crop = size, fit, flip, crop
        self._whole = _Kept(lambda image: image_to_tensor(image, size, fit), keep)

    def __call__(self, image: PILImage, rng: np.random.Generator) -> Tensor:
        pixels = self._cropped(image, rng) if self.crop else self._whole(image)
        return pixels.flip(-1) if self.flip and rng.random() < 0.5 else pixels

    def _cropped(self, image: PILImage, rng: np.random.Generator) -> Tensor:
        """A random square of the picture, padded or stretched first where `fit` says so."""
        if self.fit != "crop":
            image = to_square(image_to_rgb(image), self.fit)
        return image_to_tensor(random_square(image, self.crop, rng), self.size)


def random_square(image: PILImage, crop: float, rng: np.random.Generator) -> PILImage:
    """A random square of the picture: its side is 1 - crop to 1 times the shorter side; size and place are uniform."""
    side = max(1, round(min(image.size) * (1 - crop * rng.random())))
    left, top = (int(rng.integers(0, length - side + 1)) for length in image.size)
    return image.crop((left, top, left + side, top + side))


class SpeechExample:
    """A random crop (1, S) of a clip, of `seconds` rounded to a multiple of the hop; shorter clips stay whole.

    The whole clip is brought to the tokenizer's rate and loudness first. gain: change the crop by up to so many dB,
    uniformly, to a peak of at most 1.
    """

    def __init__(self, tokenizer: SpeechTokenizerConfig, seconds: float, *, gain: float = 0.0, keep: bool = False):
        self.length = max(1, round(seconds * tokenizer.sample_rate / tokenizer.hop)) * tokenizer.hop
        self.gain = gain
        self._whole = _Kept(lambda audio: prepare_clip(audio, tokenizer.sample_rate, tokenizer.loudness), keep)

    def __call__(self, audio: Audio, rng: np.random.Generator) -> Tensor:
        samples = self._whole(audio)
        start = int(rng.integers(0, max(1, len(samples) - self.length + 1)))
        cropped = samples[None, start : start + self.length]
        return with_gain(cropped, float(rng.uniform(-self.gain, self.gain))) if self.gain else cropped


def with_gain(samples: Tensor, level: float) -> Tensor:
    """`samples` changed by `level` dB, with less gain where the peak would exceed 1."""
    most = max(1.0, 1.0 / max(float(samples.abs().max()), 1e-6))
    return samples * min(10.0 ** (level / 20), most)
