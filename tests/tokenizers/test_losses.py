"""Reconstruction losses: zero at the target, blind to padding, the spectra of torch, the scale of Slaney."""

import pytest
import torch

from latentlm.config import (
    ImageReconstructionConfig,
    ImageTokenizerConfig,
    ImageTokenizerRecipe,
    MediaConfig,
    SourceConfig,
    SpeechReconstructionConfig,
    TrainingConfig,
)
from latentlm.tokenizers.losses import (
    _hz_to_mel,
    image_reconstruction,
    loss_weights,
    magnitudes,
    mel_filterbank,
    speech_reconstruction,
)

ALL = SpeechReconstructionConfig(mel=1, stft=1, waveform=1)


def waves(num_samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, num_samples, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.mark.parametrize("window", [256, 1024])
@pytest.mark.parametrize("num_samples", [100, 3000, 4096])
def test_magnitudes_are_those_of_torch_stft(window, num_samples):
    x = waves(num_samples)
    expected = torch.stft(
        x, window, window // 4, window=torch.hann_window(window), pad_mode="constant", return_complex=True
    ).abs()
    torch.testing.assert_close(magnitudes(x, window), expected.transpose(1, 2), atol=1e-5, rtol=1e-4)


def test_speech_losses_vanish_at_the_target_and_grow_with_the_error():
    x, noise = waves(3000), waves(3000, seed=1)
    lengths = torch.tensor([3000, 3000])
    at_target = speech_reconstruction(x, x, lengths, 16000, ALL)
    assert set(at_target) == {"mel", "stft", "waveform"}
    near, far = (speech_reconstruction(x + c * noise, x, lengths, 16000, ALL) for c in (0.1, 0.5))
    for name, value in at_target.items():
        assert value.shape == (2,)
        assert torch.all(value < 1e-4)
        assert torch.all(value < near[name])
        assert torch.all(near[name] < far[name])


def test_speech_losses_are_blind_to_padding():
    x, y = waves(2500), waves(2500, seed=1)
    alone = speech_reconstruction(y, x, torch.tensor([2500, 2500]), 16000, ALL)
    pad = torch.nn.functional.pad
    batch = speech_reconstruction(
        pad(y, (0, 1500), value=3.0), pad(x, (0, 1500)), torch.tensor([2500, 2500]), 16000, ALL
    )
    for name in alone:
        torch.testing.assert_close(batch[name], alone[name], rtol=1e-4, atol=1e-5)


def test_silence_has_finite_gradients():
    output = torch.zeros(1, 2048, requires_grad=True)
    losses = speech_reconstruction(output, torch.zeros(1, 2048), torch.tensor([2048]), 16000, ALL)
    sum(value.sum() for value in losses.values()).backward()
    assert torch.isfinite(output.grad).all()


def test_losses_without_weight_are_not_computed():
    x = waves(600)
    lengths = torch.tensor([600, 600])
    only = SpeechReconstructionConfig(mel=0, stft=0, waveform=0.5)
    assert set(speech_reconstruction(x, x, lengths, 16000, only)) == {"waveform"}
    pixels = torch.zeros(2, 3, 4, 4)
    losses = image_reconstruction(pixels + 0.5, pixels, ImageReconstructionConfig(mse=0, l1=2.0))
    assert set(losses) == {"l1"}
    torch.testing.assert_close(losses["l1"], torch.full((2,), 0.5))
    torch.testing.assert_close(
        image_reconstruction(pixels + 0.5, pixels, ImageReconstructionConfig())["mse"], torch.full((2,), 0.25)
    )


def test_mel_filters_lie_on_slaneys_scale_with_equal_area():
    assert _hz_to_mel(500.0) == pytest.approx(7.5)
    assert _hz_to_mel(1000.0) == pytest.approx(15.0)
    assert _hz_to_mel(6400.0) == pytest.approx(42.0)
    filters = mel_filterbank(16000, 2048, 80)
    assert filters.shape == (80, 1025)
    assert bool((filters >= 0).all())
    area = filters.sum(1) * 16000 / 2048
    torch.testing.assert_close(area, torch.ones(80), atol=0.05, rtol=0)
    peaks = filters.argmax(1)
    assert bool((peaks[1:] > peaks[:-1]).all())


def test_weights_come_from_the_recipe_once():
    recipe = ImageTokenizerRecipe(
        tokenizer=ImageTokenizerConfig(),
        losses=ImageReconstructionConfig(mse=2.0, l1=0.0),
        data=MediaConfig(sources=(SourceConfig(name="digits"),)),
        training=TrainingConfig(loss_weights={"mse": 3.0}),
    )
    assert loss_weights(recipe) == {"mse": 6.0, "prior": 1e-3}
