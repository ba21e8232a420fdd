"""Small real objects that many tests share: calibrated tokenizers, a random model over them, media, latents."""

import numpy as np
import torch

from latentlm.checkpoint import modality_specs
from latentlm.config import (
    DiffusionHeadConfig,
    HeadConfig,
    ImageTokenizerConfig,
    ModelConfig,
    SpeechTokenizerConfig,
    TransformerConfig,
)
from latentlm.media.sound import Audio
from latentlm.model.latentlm import LatentLM
from latentlm.tokenizers.image import ImageTokenizer
from latentlm.tokenizers.speech import SpeechTokenizer
from latentlm.tokenizers.text import TextTokenizer
from latentlm.types import Latents


def small_tokenizers() -> dict:
    torch.manual_seed(0)
    image = ImageTokenizer(ImageTokenizerConfig(image_size=8, patch_size=4, latent_dim=6, width=16, num_heads=2))
    speech = SpeechTokenizer(
        SpeechTokenizerConfig(
            sample_rate=8000, strides=(4, 4), depths=(1, 1, 1), channels=8, max_channels=16, latent_dim=5
        )
    )
    generator = np.random.default_rng(0)
    pictures = [picture(generator) for _ in range(8)]
    clips = [clip(generator) for _ in range(4)]
    for tokenizer, media in ((image, pictures), (speech, clips)):
        tokenizer.eval()
        tokenizer.calibrate([tokenizer.batch(media)])
    return {"text": TextTokenizer(), "image": image, "speech": speech}


def picture(generator: np.random.Generator, size: int = 8):
    from PIL import Image

    return Image.fromarray(generator.integers(0, 256, (size, size, 3), dtype=np.uint8))


def clip(generator: np.random.Generator, num_samples: int = 300) -> Audio:
    return Audio(torch.from_numpy(generator.standard_normal(num_samples).astype(np.float32) * 0.1), 8000)


def small_model(tokenizers: dict, head: HeadConfig | None = None, **transformer) -> LatentLM:
    """A random model whose zero-initialised layers are not zero, so that every path shows in the output."""
    config = ModelConfig(
        transformer=TransformerConfig(**({"width": 32, "num_layers": 2, "num_heads": 4} | transformer)),
        head=head or DiffusionHeadConfig(num_layers=2),
    )
    torch.manual_seed(0)
    text = tokenizers["text"]
    model = LatentLM(config, text.vocab_size, text.special, modality_specs(tokenizers))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3 * parameter.shape[-1] ** -0.5 * 2)
    return model


def random_latents(num: int, dim: int, seed: int = 0, posterior: str = "none") -> Latents:
    generator = torch.Generator().manual_seed(seed)
    return Latents(torch.randn(num, dim, generator=generator), torch.tensor(0.5), posterior)
