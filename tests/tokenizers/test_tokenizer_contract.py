"""What base.py promises of every continuous tokenizer: calibration, batches, files, fingerprints, named sums."""

import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from margins import seed
from PIL import Image

from latentlm.config import (
    ConvImageTokenizerConfig,
    ImageTokenizerConfig,
    PosteriorConfig,
    SpeechReconstructionConfig,
    SpeechTokenizerConfig,
)
from latentlm.media.sound import Audio
from latentlm.tokenizers import ConvImageTokenizer, ImageTokenizer, SpeechTokenizer, Tokenizer, load_tokenizer
from latentlm.types import MediaBatch

PICTURES = ("image", "conv_image")
KINDS = ("image", "conv_image", "waveform", "spectral")
LEFT = {"image": 0.3, "conv_image": 0.65, "waveform": 0.6, "spectral": 0.85}
"""How much of the loss may be left after 40 steps."""


def build(kind: str, **options) -> Tokenizer:
    torch.manual_seed(seed())
    if kind == "image":
        config = ImageTokenizerConfig(image_size=16, patch_size=4, latent_dim=6, width=32, **options)
        return ImageTokenizer(config)
    if kind == "conv_image":
        shape = {"channels": (8, 8, 16), "num_blocks": 1, "norm_groups": 4, "deepest_attention": True}
        posterior = options.pop("posterior", PosteriorConfig())
        return ConvImageTokenizer(
            ConvImageTokenizerConfig(image_size=16, latent_dim=6, **shape, posterior=posterior, **options)
        )
    shape = {"strides": (4, 5), "depths": (1, 1, 1)}
    if kind == "spectral":
        shape = {"strides": (2,), "depths": (1, 1), "front": "spectral", "frame_hop": 10, "frame_window": 40}
    config = SpeechTokenizerConfig(sample_rate=8000, channels=16, max_channels=24, latent_dim=6, **shape, **options)
    return SpeechTokenizer(config, SpeechReconstructionConfig(waveform=1.0))


def media(kind: str, num: int, seed: int = 0) -> list:
    draw = np.random.default_rng(seed)
    if kind in PICTURES:
        return [Image.fromarray(draw.integers(0, 256, (17, 17, 3), dtype=np.uint8)) for _ in range(num)]
    return [Audio(torch.from_numpy(draw.normal(0, 0.1, 150 + 73 * i).astype(np.float32)), 8000) for i in range(num)]


def calibrated(kind: str, **options) -> Tokenizer:
    tokenizer = build(kind, **options).eval()
    tokenizer.calibrate(batches(tokenizer, kind))
    return tokenizer


def batches(tokenizer: Tokenizer, kind: str) -> Iterator:
    return (tokenizer.batch(media(kind, 5, seed)) for seed in range(3))


@pytest.mark.parametrize("kind", KINDS)
def test_uncalibrated_use_is_an_error(kind):
    tokenizer = build(kind)
    with pytest.raises(ValueError, match="not calibrated"):
        tokenizer.encode(media(kind, 1))
    with pytest.raises(ValueError, match="not calibrated"):
        tokenizer.decode([torch.zeros(16, 6)])


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_calibrated_latents_have_zero_mean_and_unit_std(kind, per_channel):
    tokenizer = build(kind, per_channel=per_channel)
    record = tokenizer.calibrate(batches(tokenizer, kind))
    items = [item for seed in range(3) for item in media(kind, 5, seed)]
    latents = torch.cat([latent.mean for latent in tokenizer.encode(items)])
    dims = 0 if per_channel else (0, 1)
    torch.testing.assert_close(latents.mean(dims), torch.zeros_like(record.mean), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std(dims, correction=0), torch.ones_like(record.std), atol=1e-4, rtol=0)
    assert record.num_latents == len(latents)
    assert record.c_sigma == 0.5
    torch.testing.assert_close(record.c_sigma_absolute, 0.5 * record.std)


@pytest.mark.parametrize("kind", ["waveform", "spectral"])
def test_calibration_ignores_padding(kind):
    padded, alone = build(kind), build(kind)
    padded.calibrate(batches(padded, kind))
    alone.calibrate(alone.batch([clip]) for seed in range(3) for clip in media(kind, 5, seed))
    torch.testing.assert_close(padded.latent_std, alone.latent_std)
    torch.testing.assert_close(padded.latent_mean, alone.latent_mean)


def test_calibration_without_media_or_variation_is_an_error():
    tokenizer = build("image")
    with pytest.raises(ValueError, match="no valid latents"):
        tokenizer.calibrate([])
    with torch.no_grad():
        tokenizer.to_latent.weight.zero_()
    with pytest.raises(ValueError, match="do not vary"):
        tokenizer.calibrate(batches(tokenizer, "image"))
    assert torch.isnan(tokenizer.latent_std)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_what_each_item_alone_gives(kind):
    tokenizer = calibrated(kind)
    items = media(kind, 35)  # more than one call of encode takes
    together = tokenizer.encode(items)
    assert len(together) == len(items)
    for item, latent in zip(items[::6], together[::6], strict=True):
        torch.testing.assert_close(tokenizer.encode([item])[0].mean, latent.mean, atol=1e-5, rtol=1e-5)
    decoded = tokenizer.decode([latent.mean for latent in together])
    for latent, whole in zip(together[::6], decoded[::6], strict=True):
        alone = tokenizer.decode([latent.mean])[0]
        if kind in PICTURES:
            assert np.abs(np.asarray(alone, dtype=int) - np.asarray(whole, dtype=int)).max() <= 1
        else:
            torch.testing.assert_close(alone.samples, whole.samples, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("posterior", ["sigma", "learned", "none"])
def test_posterior_of_encoded_media(posterior):
    tokenizer = calibrated("waveform", posterior=PosteriorConfig(kind=posterior, c_sigma=0.3))
    latent = tokenizer.encode(media("waveform", 2))[1]
    assert latent.posterior == posterior
    if posterior == "learned":
        parameters, _ = tokenizer.encode_batch(*_inputs(tokenizer, media("waveform", 2)))
        expected = (0.5 * parameters[1, : len(latent), 6:]).exp() / tokenizer.latent_std
        torch.testing.assert_close(latent.std, expected)
    else:
        assert latent.std.item() == pytest.approx(0.3 if posterior == "sigma" else 0.0)
    assert latent.sample(torch.Generator().manual_seed(0)).shape == latent.mean.shape


def _inputs(tokenizer: Tokenizer, items: list) -> tuple:
    batch = tokenizer.batch(items)
    return batch.media, batch.lengths


@pytest.mark.parametrize("kind", KINDS)
def test_forward_sums_over_examples(kind):
    tokenizer = build(kind, posterior=PosteriorConfig(kind="none")).eval()
    items = media(kind, 3)
    together = tokenizer(tokenizer.batch(items), torch.Generator())
    expected_names = {"mse", "prior"} if kind in PICTURES else {"mel", "stft", "waveform", "prior"}
    assert set(together) == expected_names
    alone = [tokenizer(tokenizer.batch([item]), torch.Generator()) for item in items]
    for name, value in together.items():
        assert value.shape == ()
        torch.testing.assert_close(value, sum(losses[name] for losses in alone), rtol=1e-4, atol=1e-4)


def test_no_prior_without_weight():
    tokenizer = build("image", posterior=PosteriorConfig(weight=0))
    losses = tokenizer(tokenizer.batch(media("image", 2)), torch.Generator().manual_seed(0))
    assert set(losses) == {"mse"}


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss_and_reaches_every_weight(kind, margin):
    tokenizer = build(kind, posterior=PosteriorConfig(c_sigma=0.1))
    batch = tokenizer.batch(media(kind, 4, seed()))
    if kind not in PICTURES:  # tones: noise cannot be learned through so few latents
        time = torch.arange(batch.media.shape[-1]) / 8000
        batch.media = torch.stack([(6.28 * pitch * time).sin() * 0.3 for pitch in (200, 400, 600, 800)])[:, None]
        batch.lengths = torch.full((4,), batch.media.shape[-1])
    optimizer = torch.optim.AdamW(tokenizer.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(seed())
    before = loss_with_noise(tokenizer, batch, 1)
    for _ in range(40):
        loss = sum(tokenizer(batch, generator).values()) / 4
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    silent = [name for name, p in tokenizer.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []
    margin("loss after, over loss before", loss_with_noise(tokenizer, batch, 1) / before, at_most=LEFT[kind])


@torch.no_grad()
def loss_with_noise(tokenizer: Tokenizer, batch: MediaBatch, number: int) -> float:
    """The loss under one and the same noise, whichever weights the tokenizer has."""
    return float(sum(tokenizer(batch, torch.Generator().manual_seed(seed(number))).values()))


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load_give_the_same_tokenizer(kind, tmp_path):
    tokenizer = calibrated(kind)
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint() == tokenizer.fingerprint()
    assert not loaded.training
    items = media(kind, 2)
    assert torch.equal(loaded.encode(items)[1].mean, tokenizer.encode(items)[1].mean)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_fingerprint_follows_weights_calibration_and_config():
    tokenizer = build("image")
    seen = {tokenizer.fingerprint(), build("image", posterior=PosteriorConfig(c_sigma=0.4)).fingerprint()}
    assert tokenizer.fingerprint() == build("image").fingerprint()
    tokenizer.calibrate(batches(tokenizer, "image"))
    seen.add(tokenizer.fingerprint())
    with torch.no_grad():
        tokenizer.patch_in.weight[0, 0] += 1e-6
    seen.add(tokenizer.fingerprint())
    assert len(seen) == 4
    assert all(len(name) == 16 for name in seen)


def test_folders_that_cannot_be_loaded_name_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json: no such file"):
        load_tokenizer(tmp_path)
    tokenizer = calibrated("image")
    tokenizer.save(tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    for change, message in (
        ({"kind": "smell"}, "kind is 'smell', expected one of image, conv_image, speech"),
        ({"format_version": 99}, "format_version is 99"),
        ({"widht": 3}, "unknown key 'widht', did you mean 'width'"),
        ({"width": 64}, "misshaped"),
    ):
        path.write_text(json.dumps(fields | change))
        with pytest.raises(ValueError, match=message) as error:
            load_tokenizer(tmp_path)
        assert str(tmp_path) in str(error.value)
        assert "\n" not in str(error.value)
    path.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        load_tokenizer(tmp_path)


def test_latents_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="16 latents, got 9"):
        calibrated("image").decode([torch.zeros(9, 6)])
    with pytest.raises(ValueError, match=r"\(9, 5\).*\(N, 6\)"):
        calibrated("waveform").decode([torch.zeros(9, 5)])
