"""The evaluation against the real pipeline, with an untrained model: every part runs, nothing scores by chance."""

from dataclasses import replace

import pytest
import torch
from margins import seed

from latentlm.checkpoint import modality_specs
from latentlm.config import (
    DiffusionHeadConfig,
    ImageTokenizerConfig,
    ModelConfig,
    SpeechTokenizerConfig,
    TransformerConfig,
)
from latentlm.data.embedded import digits
from latentlm.evaluation import evaluate as module
from latentlm.evaluation.page import write_report
from latentlm.evaluation.protocol import QUICK
from latentlm.generation.pipeline import Pipeline
from latentlm.media.sound import Audio
from latentlm.model.latentlm import LatentLM
from latentlm.tokenizers.image import ImageTokenizer
from latentlm.tokenizers.speech import SpeechTokenizer
from latentlm.tokenizers.text import TextTokenizer


@pytest.fixture(scope="module")
def pipeline():
    torch.manual_seed(seed())
    image = ImageTokenizer(ImageTokenizerConfig(image_size=32, patch_size=16, width=32, num_heads=2, latent_dim=4))
    speech = SpeechTokenizer(
        SpeechTokenizerConfig(
            sample_rate=16000, front="spectral", frame_hop=320, frame_window=640, strides=(2, 2), channels=8,
            depths=(1, 1, 1), latent_dim=4,
        )
    )  # fmt: skip
    image.eval().calibrate([image.batch([item.image for item in digits.load("train")[:64]])])
    speech.eval().calibrate([speech.batch([Audio(0.1 * torch.randn(16000), 16000) for _ in range(4)])])
    tokenizers = {"text": TextTokenizer(), "image": image, "speech": speech}
    config = ModelConfig(
        transformer=TransformerConfig(width=32, num_layers=1, num_heads=2, context_length=512),
        head=DiffusionHeadConfig(num_layers=1),
    )
    text = tokenizers["text"]
    return Pipeline(LatentLM(config, text.vocab_size, text.special, modality_specs(tokenizers)), tokenizers)


def test_an_untrained_model_is_measured_and_knows_nothing(pipeline, monkeypatch, tmp_path, margin):
    pytest.importorskip("pocketsphinx")
    pytest.importorskip("espeakng_loader")
    few = replace(
        QUICK, digits_per_class=2, captions=5, draws=2, emoji=5, shapes=4, words=10, phrases=2, reconstructions=6
    )
    monkeypatch.setattr(module, "QUICK", few)
    told = []
    report = module.evaluate(pipeline, steps=2, quick=True, seed=seed(), progress=told.append)
    values = {name: figure.value for name, figure in report.figures.items()}
    assert len(told) == 6
    assert report.notes == [] or all("not installed" in note for note in report.notes)
    for name in ("digits.caption_accuracy", "speech.transcribe_accuracy", "shapes.answer_accuracy", "emoji.top1"):
        assert values[name] == 0
    margin("digits drawn right", values["digits.prompt_accuracy"], at_most=0.4)
    margin("Fréchet ratio", values["digits.frechet_ratio"], at_least=1.5)
    bits = values["text.bits_per_byte"] / values["text.bits_per_byte_uniform"]
    margin("bits over those of chance", bits, at_least=0.9)
    margin("bits over those of chance", bits, at_most=1.1)
    write_report(report, tmp_path)
    assert "digits drawn right" in (tmp_path / "report.html").read_text(encoding="utf-8")
