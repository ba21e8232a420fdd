"""The latent cache: encoded once, by identity; on disk with the tokenizer's fingerprint; a mismatch is an error."""

import numpy as np
import pytest
import torch
from small import clip, picture, small_tokenizers

from latentlm.data.cache import LatentCache, ResolvedDocuments, write_latents
from latentlm.modalities.image import Image
from latentlm.modalities.speech import Speech
from latentlm.types import Document, Latents, Text
from latentlm.weights import save_weights


@pytest.fixture
def document():
    generator = np.random.default_rng(0)
    image = picture(generator)
    return Document((Image(image), Text("and"), Speech(clip(generator)), Image(image)))


def continuous(tokenizers):
    return {name: t for name, t in tokenizers.items() if name != "text"}


def test_media_become_latents_in_place_and_once(tokenizers, document, monkeypatch):
    calls = []
    encode = tokenizers["image"].encode
    monkeypatch.setattr(tokenizers["image"], "encode", lambda media: calls.append(len(media)) or encode(media))
    cache = LatentCache(continuous(tokenizers))
    resolved = cache.resolve(document)
    assert [type(getattr(s, "content", None)) for s in resolved.segments] == [Latents, type(None), Latents, Latents]
    assert resolved.segments[0].content is resolved.segments[3].content
    cache.resolve(document)
    assert calls == [1]


def test_what_is_on_disk_comes_back_exactly(tokenizers, document, tmp_path):
    first = LatentCache(continuous(tokenizers), tmp_path)
    first.prepare([document], "pages")
    again = LatentCache(continuous(tokenizers), tmp_path)
    again._encode_all = None  # must not be needed
    again.prepare([document], "pages")
    for one, two in zip(first.resolve(document).segments, again.resolve(document).segments, strict=True):
        if not isinstance(one, Text):
            assert torch.equal(one.content.mean, two.content.mean)
            assert torch.equal(one.content.std, two.content.std)
            assert one.content.posterior == two.content.posterior


def test_latents_of_another_tokenizer_are_refused(tokenizers, document, tmp_path):
    LatentCache(continuous(tokenizers), tmp_path).prepare([document], "pages")
    other = continuous(small_tokenizers())
    with torch.no_grad():
        next(other["image"].parameters()).add_(0.1)
    with pytest.raises(ValueError, match=r"pages-image.safetensors: latents of another tokenizer"):
        LatentCache(other, tmp_path).prepare([document], "pages")


def test_latents_of_other_media_are_refused(tokenizers, document, tmp_path):
    cache = LatentCache(continuous(tokenizers), tmp_path)
    cache.prepare([document], "pages")
    different = Document((Image(picture(np.random.default_rng(9))),))
    with pytest.raises(ValueError, match="latents of other media"):
        LatentCache(continuous(tokenizers), tmp_path).prepare([different], "pages")


def test_a_broken_file_is_named_in_one_line(tokenizers, document, tmp_path):
    cache = continuous(tokenizers)
    LatentCache(cache, tmp_path).prepare([document], "pages")
    path = tmp_path / "pages-image.safetensors"
    whole = path.read_bytes()
    save_weights(tmp_path / "plain", {"mean": torch.ones(1)})  # weights, but no latents
    for broken in (b"", whole[:6], whole[: len(whole) // 2], whole[:-1], (tmp_path / "plain").read_bytes()):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"pages-image.safetensors: not readable .*; delete it to go on"):
            LatentCache(cache, tmp_path).prepare([document], "pages")


def test_a_modality_without_tokenizer_is_named(tokenizers, document):
    with pytest.raises(ValueError, match="no speech tokenizer"):
        LatentCache({"image": tokenizers["image"]}).resolve(document)


@pytest.mark.parametrize("noise", [0.0, 1.0, 2.5])
def test_a_source_may_widen_its_posteriors_and_nothing_else(tokenizers, document, noise):
    cache = LatentCache(continuous(tokenizers))
    plain = cache.resolve(document)
    wider = ResolvedDocuments([document], cache, noise)[0]
    assert wider.segments[1] == document.segments[1]
    for kept, segment in zip(plain.segments, wider.segments, strict=True):
        if isinstance(segment, Text):
            continue
        assert torch.equal(segment.content.mean, kept.content.mean)
        assert torch.equal(segment.content.std, noise * kept.content.std)
        drawn, base = (s.content.sample(torch.Generator().manual_seed(0)) for s in (segment, kept))
        torch.testing.assert_close(drawn - kept.content.mean, noise * (base - kept.content.mean))
    assert cache.resolve(document).segments[0].content is plain.segments[0].content


def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_nothing(tmp_path, full_disk):
    path = tmp_path / "pages-image.safetensors"
    with full_disk(), pytest.raises(OSError, match="File too large") as error:
        write_latents(path, [Latents(torch.ones(100, 10), torch.tensor(0.5), "sigma")], {})
    assert error.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []
