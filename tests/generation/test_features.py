"""A second tokenizer of speech: its features reach training, packing and generation, where the model itself speaks."""

import numpy as np
import pytest
import torch
from small import clip, small_tokenizers

from latentlm.checkpoint import modality_specs
from latentlm.config import DiffusionHeadConfig, ModelConfig, SpeechTokenizerConfig, TransformerConfig
from latentlm.data.cache import LatentCache
from latentlm.data.packing import DocumentEncoder, pack
from latentlm.generation.pipeline import Pipeline
from latentlm.generation.request import Request
from latentlm.modalities.speech import Speech
from latentlm.model.latentlm import LatentLM
from latentlm.model.layers import Connector
from latentlm.tokenizers.speech import SpeechTokenizer
from latentlm.types import Document, Latents, Text

SHAPE = {"sample_rate": 8000, "strides": (4, 4), "depths": (1, 1, 1), "channels": 8, "max_channels": 16}


def semantic_tokenizer(**changes) -> SpeechTokenizer:
    torch.manual_seed(1)
    config = SpeechTokenizerConfig(**SHAPE | {"latent_dim": 7, "parts": "encoder"} | changes)
    tokenizer = SpeechTokenizer(config).eval()
    tokenizer.calibrate([tokenizer.batch([clip(np.random.default_rng(3))])])
    return tokenizer


@pytest.fixture(scope="module")
def tokenizers() -> dict:
    chosen = {name: t for name, t in small_tokenizers().items() if name != "image"}
    return chosen | {"semantic": semantic_tokenizer()}


@pytest.fixture(scope="module")
def model(tokenizers) -> LatentLM:
    config = ModelConfig(
        transformer=TransformerConfig(width=32, num_layers=2, num_heads=4),
        head=DiffusionHeadConfig(num_layers=2),
        latent_projection="connector",
    )
    torch.manual_seed(0)
    text = tokenizers["text"]
    model = LatentLM(config, text.vocab_size, text.special, modality_specs(tokenizers))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
        model.text_head.weight[[text.special.eod, text.special.proceed]] = 0.0  # a tie: it never ends by itself
    return model.eval()


def encoded(tokenizers: dict, document: Document):
    cache = LatentCache({name: t for name, t in tokenizers.items() if name != "text"})
    return DocumentEncoder(tokenizers["text"])(cache.resolve(document))


def two_clips() -> Document:
    generator = np.random.default_rng(0)
    given = {"condition": True, "loss": False}
    return Document((Speech(clip(generator), **given), Text("say", **given), Speech(clip(generator, 200))))


def test_what_is_learnt_has_features_and_what_is_given_has_none(tokenizers):
    document = encoded(tokenizers, two_clips())
    given, learnt = document.spans
    assert given.latents.features is None
    assert learnt.latents.features.shape == (13, 7)
    batch = pack([document, document], {"speech": 5})
    span = batch.latents["speech"]
    assert span.features.shape == (26, 7)
    assert torch.equal(span.feature_index, span.index[span.target])
    assert span.to("cpu").feature_index is not None


def test_features_are_added_to_the_input(tokenizers, model):
    document = encoded(tokenizers, two_clips())
    batch = pack([document], {"speech": 5})
    with torch.no_grad():
        inputs = []
        hook = model.transformer.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
        model.hidden(batch)
        hook.remove()
        span = batch.latents["speech"]
        expected = model.embed_latents["speech"](span.values)
        expected[span.target] += model.embed_features["speech"](span.features)
    assert isinstance(model.embed_features["speech"], Connector)
    torch.testing.assert_close(inputs[0].flatten(0, 1)[span.index], expected)


def test_the_loss_trains_the_features_map(tokenizers, model):
    batch = pack([encoded(tokenizers, two_clips())], {"speech": 5})
    sums = model(batch, torch.Generator().manual_seed(0))
    sum(sums.values()).backward()
    assert model.embed_features["speech"].up.weight.grad.abs().max() > 0
    model.zero_grad(set_to_none=True)


def test_a_model_hears_what_it_says(tokenizers, model):
    """Generated latents, put back as a document with the features of their sound, are what the engine was in."""
    pipeline = Pipeline(model, tokenizers)
    request = Request(Document((Text("a", condition=True, loss=False),)), "speech", steps=3, max_latents=6)
    (output,) = pipeline.generate_batch([request])
    sound = output.segments[0].content
    heard = tokenizers["semantic"].encode([sound])[0].mean
    changed = dict(tokenizers, semantic=semantic_tokenizer())
    with torch.no_grad():
        changed["semantic"].encoder.head.weight.neg_()
    (other,) = Pipeline(model, changed).generate_batch([request])
    assert heard.shape == (6, 7)
    assert torch.allclose(other.segments[0].content.samples[:16], sound.samples[:16])  # the first latent hears nothing
    assert not torch.allclose(other.segments[0].content.samples, sound.samples, atol=1e-4)
    streamed = torch.cat([piece.samples for piece in pipeline.stream(request)])
    torch.testing.assert_close(streamed, sound.samples)


def test_features_stay_on_disk(tokenizers, tmp_path, monkeypatch):
    continuous = {name: t for name, t in tokenizers.items() if name != "text"}
    document = two_clips()
    first = LatentCache(continuous, tmp_path)
    first.prepare([document], "talk")
    readers = ("semantic", "speech")
    kept = [f"{name}-{continuous[name].fingerprint()}" for name in readers]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept
    again = LatentCache(continuous, tmp_path)
    for name in readers:
        monkeypatch.setattr(continuous[name], "encode", None)  # must not be needed
    again.prepare([document], "talk")
    one, two = (cache.resolve(document).segments[2].content.features for cache in (first, again))
    assert torch.equal(one, two)


def test_features_that_do_not_fit_are_refused(tokenizers, model):
    without = {name: t for name, t in tokenizers.items() if name != "semantic"}
    with pytest.raises(ValueError, match="takes 7 features of speech: it needs their semantic tokenizer"):
        Pipeline(model, without)
    slower = dict(tokenizers, semantic=semantic_tokenizer(strides=(4, 8)))
    with pytest.raises(ValueError, match="a latent stands for 16 samples at 8000 Hz, but a feature for 32 samples"):
        Pipeline(model, slower)
    bare = Document((Speech(Latents(torch.zeros(3, 5), torch.tensor(0.0), "none")),))
    with pytest.raises(ValueError, match="latents of speech are targets without semantic features"):
        encoded(tokenizers, bare)


def test_half_a_tokenizer_says_what_it_lacks(tokenizers):
    encoder = tokenizers["semantic"]
    with pytest.raises(ValueError, match="has only the encoder; the decoder is needed here"):
        encoder.decode([torch.zeros(2, 7)])
    with pytest.raises(ValueError, match="the decoder is needed"):
        encoder.stream_decoder()
    decoder = SpeechTokenizer(SpeechTokenizerConfig(**SHAPE | {"latent_dim": 5, "parts": "decoder"}))
    decoder.latent_mean.fill_(0.0)
    decoder.latent_std.fill_(1.0)
    assert len(decoder.decode([torch.zeros(2, 5)])[0].samples) == 32
    with pytest.raises(ValueError, match="has only the decoder; the encoder is needed here"):
        decoder.encode([clip(np.random.default_rng(0))])
