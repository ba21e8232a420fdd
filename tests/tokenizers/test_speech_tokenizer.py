"""The speech tokenizer: sizes of the paper, lengths, no leak from the future, streamed = whole."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlm.config import SpeechTokenizerConfig
from latentlm.media.sound import Audio
from latentlm.tokenizers.speech import SpeechTokenizer

SHAPES = {
    "waveform": {"strides": (2, 5), "depths": (1, 1, 1)},
    "spectral": {"front": "spectral", "frame_hop": 5, "frame_window": 20, "strides": (2,), "depths": (1, 1)},
    "long window": {"front": "spectral", "frame_hop": 5, "frame_window": 40, "strides": (2,), "depths": (1, 1)},
}
HOP = 10


def build(shape: str) -> SpeechTokenizer:
    torch.manual_seed(0)
    config = SpeechTokenizerConfig(sample_rate=8000, channels=8, max_channels=12, latent_dim=4, **SHAPES[shape])
    tokenizer = SpeechTokenizer(config).eval()
    with torch.no_grad():
        for name, parameter in tokenizer.named_parameters():
            if "gamma" in name or name.endswith("bias"):
                parameter.normal_()  # so that every block and every start of a stream shows in the output
    tokenizer.calibrate([tokenizer.batch([Audio(sound(500), 8000)])])
    return tokenizer


def sound(num_samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_samples, generator=torch.Generator().manual_seed(seed)) * 0.1


TOKENIZERS = {shape: build(shape) for shape in SHAPES}


def encode(tokenizer: SpeechTokenizer, samples: torch.Tensor) -> torch.Tensor:
    return tokenizer.encode([Audio(samples, 8000)])[0].mean


def test_a_clip_of_another_rate_is_resampled_and_said(notices):
    tokenizer = TOKENIZERS["waveform"]
    slow, fast = Audio(sound(1000), 4000, "slow.wav"), Audio(sound(1000), 16000)
    found = tokenizer.encode([slow, fast, Audio(sound(1000), 8000)])
    assert [len(latents) for latents in found] == [200, 50, 100]
    assert notices() == [
        "slow.wav: 4,000 Hz resampled to 8,000 Hz",
        "sound without a file: 16,000 Hz resampled to 8,000 Hz",
    ]
    tokenizer.encode([slow, fast, fast])
    assert notices() == []
    with pytest.raises(ValueError, match=r"shape \(2, 500\); expected mono"):
        tokenizer.encode([Audio(sound(1000).view(2, 500), 8000)])


def decode(tokenizer: SpeechTokenizer, latents: torch.Tensor) -> torch.Tensor:
    return tokenizer.decode([latents])[0].samples


@pytest.mark.parametrize(
    ("strides", "rate", "latent_dim"),
    [((2, 4, 5, 5, 8), 15, 32), ((4, 4, 5, 5, 8), 7.5, 64), ((4, 5, 5, 8, 8), 3.75, 128)],
)
def test_the_papers_tokenizers_have_their_rate_and_size(strides, rate, latent_dim):
    """About 120M parameters in the encoder, the decoder its mirror (PAPER §4.1)."""
    with torch.device("meta"):
        tokenizer = SpeechTokenizer(SpeechTokenizerConfig(strides=strides, latent_dim=latent_dim))
    assert tokenizer.rate == rate
    for half in (tokenizer.encoder, tokenizer.decoder):
        assert sum(p.numel() for p in half.parameters()) == pytest.approx(120e6, rel=0.03)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_samples", [1, 9, 10, 11, 200])
def test_a_clip_has_a_latent_for_every_started_hop(shape, num_samples):
    tokenizer = TOKENIZERS[shape]
    latents = encode(tokenizer, sound(num_samples))
    assert latents.shape == (-(-num_samples // HOP), 4)
    assert decode(tokenizer, latents).shape == (len(latents) * HOP,)


@pytest.mark.parametrize("shape", SHAPES)
def test_latents_see_nothing_later(shape):
    tokenizer, samples = TOKENIZERS[shape], sound(300)
    latents = encode(tokenizer, samples)
    changed = samples.clone()
    changed[150:] = sound(150, seed=1)
    other = encode(tokenizer, changed)
    torch.testing.assert_close(other[:15], latents[:15], atol=1e-5, rtol=0)
    assert (other[15] - latents[15]).abs().max() > 1e-3
    torch.testing.assert_close(encode(tokenizer, samples[:150]), latents[:15], atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_sound_sees_later_latents_only_within_the_delay(shape):
    tokenizer = TOKENIZERS[shape]
    latents = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    changed = latents.clone()
    changed[15:] += 1
    delay = tokenizer.decoder.delay
    assert delay == (0 if shape == "waveform" else tokenizer.config.frame_window - 5)
    first, second = decode(tokenizer, latents), decode(tokenizer, changed)
    torch.testing.assert_close(second[: 150 - delay], first[: 150 - delay], atol=1e-5, rtol=0)
    assert (second - first)[150 - delay : 160].abs().max() > 1e-4


def cut(total: int, sizes: list[int]) -> list[tuple[int, int]]:
    """Pieces of the given sizes, cyclically, until `total` is reached."""
    pieces, start = [], 0
    while start < total:
        end = min(total, start + max(sizes[len(pieces) % len(sizes)], int(not any(sizes))))
        pieces.append((start, end))
        start = end
    return pieces


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=12, deadline=None)
@given(sizes=st.lists(st.integers(0, 47), min_size=1, max_size=5), num_samples=st.integers(1, 160))
def test_streamed_encoding_is_the_whole(shape, sizes, num_samples):
    tokenizer, samples = TOKENIZERS[shape], sound(num_samples)
    stream = tokenizer.stream_encoder()
    pieces = [stream.push(samples[a:b]) for a, b in cut(num_samples, sizes)]
    ready = sum(len(piece) for piece in pieces)
    assert ready == num_samples // HOP  # nothing is held back
    streamed = torch.cat([*pieces, stream.flush()])
    torch.testing.assert_close(streamed, encode(tokenizer, samples), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=12, deadline=None)
@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=5), num_latents=st.integers(1, 12))
def test_streamed_decoding_is_the_whole(shape, sizes, num_latents):
    tokenizer = TOKENIZERS[shape]
    latents = torch.randn(num_latents, 4, generator=torch.Generator().manual_seed(0))
    stream = tokenizer.stream_decoder()
    pieces = [stream.push(latents[a:b]) for a, b in cut(num_latents, sizes)]
    assert sum(len(piece) for piece in pieces) == max(num_latents * HOP - tokenizer.decoder.delay, 0)
    streamed = tokenizer.piece(torch.cat([*pieces, stream.flush()])).samples
    whole = decode(tokenizer, latents)
    torch.testing.assert_close(streamed, whole, atol=1e-5, rtol=1e-5)


def test_streams_end_once():
    tokenizer = TOKENIZERS["spectral"]
    decoder, encoder = tokenizer.stream_decoder(), tokenizer.stream_encoder()
    assert len(decoder.flush()) == 0
    assert encoder.flush().shape == (0, 4)
    with pytest.raises(ValueError, match="flushed"):
        decoder.push(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="flushed"):
        encoder.push(torch.zeros(3))
    with pytest.raises(ValueError, match="mono"):
        tokenizer.stream_encoder().push(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"\(N, 4\)"):
        tokenizer.stream_decoder().push(torch.zeros(2, 3))


def test_uncalibrated_tokenizers_do_not_stream():
    tokenizer = SpeechTokenizer(SpeechTokenizerConfig(**SHAPES["waveform"], channels=8))
    with pytest.raises(ValueError, match="not calibrated"):
        tokenizer.stream_encoder()
    with pytest.raises(ValueError, match="not calibrated"):
        tokenizer.stream_decoder()


def test_clips_of_another_rate_are_resampled(notices):
    tokenizer = TOKENIZERS["waveform"]
    time = torch.arange(3200) / 16000
    latent = tokenizer.encode([Audio((6.283 * 200 * time).sin() * 0.3, 16000)])[0]
    assert len(latent) == 160
    same = tokenizer.encode([Audio((6.283 * 200 * time[::2]).sin() * 0.3, 8000)])[0]
    torch.testing.assert_close(latent.mean[10:-10], same.mean[10:-10], atol=0.05, rtol=0)


@pytest.mark.parametrize("samples", [torch.zeros(0), torch.zeros(2, 50)])
def test_empty_and_stereo_clips_are_refused(samples):
    with pytest.raises(ValueError, match=r"^a\.wav: .* expected mono"):
        TOKENIZERS["waveform"].encode([Audio(samples, 8000, "a.wav")])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"front": "waveform", "frame_hop": 160}, "frame_hop 160"),
        ({"front": "spectral", "frame_hop": 160, "frame_window": 160}, "frame_window 160"),
        ({"front": "spectral", "frame_hop": 160, "frame_window": 500}, "frame_window 500"),
    ],
)
def test_frames_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SpeechTokenizer(SpeechTokenizerConfig(**fields))
