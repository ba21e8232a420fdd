"""VibeVoice's parts against `transformers`: tokenizers whole and streamed, connectors, backbone, head."""

import pytest
import torch
from tiny_vibevoice import HOP, LATENT, WIDTH, build, save
from transformers import VibeVoiceAcousticTokenizerFeatureExtractor, VibeVoiceForConditionalGeneration

from latentlm.interop.vibevoice import load
from latentlm.media.sound import Audio

FP32 = 1e-4
BF16 = 2e-2


@pytest.fixture(scope="module")
def theirs():
    return build()


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory):
    return load(save(theirs, tmp_path_factory.mktemp("vibevoice")))


def sound(frames: float, seed: int = 0) -> torch.Tensor:
    return torch.randn(int(frames * HOP), generator=torch.Generator().manual_seed(seed)) * 0.3


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def normalised(theirs, latents: torch.Tensor) -> torch.Tensor:
    return (latents + theirs.model.latent_bias_factor) * theirs.model.latent_scaling_factor


@torch.no_grad()
def test_acoustic_encoder(theirs, ours, agree):
    """Their extractor normalises the loudness and fills up the last hop; ours does so inside the tokenizer."""
    clips = [sound(12), sound(7.3, 1) * 4, sound(1, 2) * 0.01]
    extract = VibeVoiceAcousticTokenizerFeatureExtractor(pad_to_multiple_of=HOP)
    batch = extract([clip.numpy() for clip in clips], sampling_rate=24000)
    latents = theirs.model.audio_tower.encode(batch["input_values"], sample=False).latents
    for row, encoded in enumerate(ours.tokenizers["speech"].encode([Audio(clip, 24000) for clip in clips])):
        expected = normalised(theirs, latents[row, : -(-len(clips[row]) // HOP)])
        agree("VibeVoice acoustic encoder", encoded.mean, expected, FP32)


@torch.no_grad()
def test_acoustic_decoder_whole_and_streamed(theirs, ours, agree):
    raw = normal(1, 17, LATENT) * 3
    expected = theirs.model.audio_tower.decode(raw).audio[0, 0]
    speech, latents = ours.tokenizers["speech"], normalised(theirs, raw[0])
    agree("VibeVoice acoustic decoder", speech.decode([latents])[0].samples, expected, FP32)
    cache, chunks = None, []
    stream, ours_streamed = speech.stream_decoder(), []
    for a, b in ((0, 1), (1, 2), (2, 7), (7, 17)):
        output = theirs.model.audio_tower.decode(raw[:, a:b], padding_cache=cache, use_cache=True)
        cache = output.padding_cache
        chunks.append(output.audio[0, 0])
        ours_streamed.append(stream.push(latents[a:b]))
    agree("VibeVoice acoustic decoder, streamed", torch.cat(ours_streamed), torch.cat(chunks), FP32)
    agree("VibeVoice acoustic decoder, streamed", torch.cat(ours_streamed), expected, FP32)


@torch.no_grad()
@pytest.mark.parametrize("which", ["acoustic", "semantic"])
def test_encoders_streamed(theirs, ours, agree, which):
    samples = sound(13)
    encoder = theirs.model.audio_tower.encoder if which == "acoustic" else theirs.model.semantic_tokenizer_encoder
    tokenizer = ours.tokenizers["speech" if which == "acoustic" else "semantic"]
    cache, chunks = None, []
    stream, ours_streamed = tokenizer.stream_encoder(), []
    for a, b in ((0, 1), (1, 2), (2, 6), (6, 13)):
        piece = samples[a * HOP : b * HOP]
        output = encoder(piece[None, None], padding_cache=cache, use_cache=True)
        cache = output.padding_cache
        chunks.append(output.latents[0])
        ours_streamed.append(stream.push(piece))
    whole = encoder(samples[None, None]).latents[0]
    expected = torch.cat(chunks)
    if which == "acoustic":
        whole, expected = normalised(theirs, whole), normalised(theirs, expected)
    agree(f"VibeVoice {which} encoder, streamed", torch.cat(ours_streamed), expected, FP32)
    agree(f"VibeVoice {which} encoder, streamed", torch.cat(ours_streamed), whole, FP32)


@torch.no_grad()
def test_connectors(theirs, ours, agree):
    for ours_map, theirs_map, width in (
        (ours.model.embed_latents["speech"], theirs.model.multi_modal_projector, LATENT),
        (ours.model.embed_features["speech"], theirs.model.semantic_connector, 9),
    ):
        x = normal(11, width)
        agree("VibeVoice connectors", ours_map(x), theirs_map(x), FP32)


@pytest.fixture(scope="module")
def halves(theirs, tmp_path_factory):
    """Both in bf16. Not by `theirs.bfloat16()`: that rounds the frequencies of its time embedding as well."""
    folder = save(theirs, tmp_path_factory.mktemp("vibevoice"))
    reference = VibeVoiceForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
    assert reference.model.diffusion_head.timestep_embedding.freq.dtype == torch.float32
    return load(folder, dtype=torch.bfloat16), reference


def hidden_states(pipeline, ids: torch.Tensor) -> torch.Tensor:
    count = torch.arange(ids.shape[1])[None]
    model = pipeline.model
    return model.transformer(model.embed_tokens(ids), count, torch.zeros_like(count))


@torch.no_grad()
def test_hidden_states_and_logits(theirs, ours, agree):
    ids = torch.randint(0, 256, (1, 19), generator=torch.Generator().manual_seed(0))
    hidden, expected = hidden_states(ours, ids), theirs(input_ids=ids)
    agree("VibeVoice hidden states", hidden, expected.last_hidden_state, FP32)
    agree("VibeVoice logits", ours.model.text_logits(hidden), expected.logits, FP32)


@torch.no_grad()
def test_head(theirs, ours, agree):
    t = torch.tensor([0, 1, 7, 99, 255, 256, 511, 600, 901, 998, 999])
    noisy, hidden = normal(11, LATENT), normal(11, WIDTH, seed=1)
    expected = theirs.model.diffusion_head(noisy, t.float(), condition=hidden)
    agree("VibeVoice diffusion head", ours.model.heads["speech"](noisy, t, hidden), expected, FP32)


@torch.no_grad()
def test_half_precision(halves, agree):
    """At times that bf16 holds exactly: the reference casts the time before its sinusoid, and sees 1000 for 999."""
    ours, theirs = halves
    ids = torch.randint(0, 256, (1, 19), generator=torch.Generator().manual_seed(0))
    expected = theirs(input_ids=ids).last_hidden_state
    agree("VibeVoice hidden states, bf16", hidden_states(ours, ids), expected, BF16, relative=True)
    t = torch.tensor([0, 1, 7, 99, 255, 256, 512, 600, 904, 996, 992])
    noisy, hidden = normal(11, LATENT).bfloat16(), normal(11, WIDTH, seed=1).bfloat16()
    expected = theirs.model.diffusion_head(noisy, t.bfloat16(), condition=hidden)
    agree("VibeVoice diffusion head, bf16", ours.model.heads["speech"](noisy, t, hidden), expected, BF16, relative=True)


@torch.no_grad()
def test_time_is_not_rounded_in_half_precision(halves):
    """Where the reference errs: 999 and 1000 are one time to it, not to us."""
    ours, theirs = halves
    noisy, hidden = normal(2, LATENT)[:1].expand(2, -1).bfloat16(), normal(2, WIDTH)[:1].expand(2, -1).bfloat16()
    t = torch.tensor([999, 1000])
    same = theirs.model.diffusion_head(noisy, t.bfloat16(), condition=hidden)
    assert torch.equal(same[0], same[1])
    different = ours.model.heads["speech"](noisy, t, hidden)
    assert not torch.equal(different[0], different[1])
