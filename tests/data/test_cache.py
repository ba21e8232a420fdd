"""The latent cache: media are encoded once, kept on disk as they come, and shared between runs."""

import re

import numpy as np
import pytest
import torch
from small import clip, picture, small_tokenizers

from latentlm.data import progress
from latentlm.data.cache import LatentCache, ResolvedDocuments
from latentlm.data.latent_files import LatentStore, media_hash, write_latents
from latentlm.errors import UserError
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


def pictures(num: int) -> list[Document]:
    generator = np.random.default_rng(1)
    return [Document((Image(picture(generator)),)) for _ in range(num)]


def means(cache, documents) -> list[torch.Tensor]:
    return [cache.resolve(document).segments[0].content.mean for document in documents]


def count_encoded(tokenizer, monkeypatch, fail_after: int | None = None) -> list[int]:
    """The sizes of the batches that `tokenizer` encodes from now on; Ctrl-C comes after `fail_after` of them."""
    sizes: list[int] = []
    encode = tokenizer.encode

    def counted(media):
        if len(sizes) == fail_after:
            raise KeyboardInterrupt
        sizes.append(len(media))
        return encode(media)

    monkeypatch.setattr(tokenizer, "encode", counted)
    return sizes


def test_what_is_on_disk_comes_back_exactly(tokenizers, document, tmp_path, monkeypatch):
    first = LatentCache(continuous(tokenizers), tmp_path)
    first.prepare([document])
    again = LatentCache(continuous(tokenizers), tmp_path)
    sizes = count_encoded(tokenizers["image"], monkeypatch)
    again.prepare([document])
    assert sizes == []
    for one, two in zip(first.resolve(document).segments, again.resolve(document).segments, strict=True):
        if not isinstance(one, Text):
            assert torch.equal(one.content.mean, two.content.mean)
            assert torch.equal(one.content.std, two.content.std)
            assert one.content.posterior == two.content.posterior


def test_an_interrupted_encoding_goes_on_where_it_was(tokenizers, tmp_path, monkeypatch):
    documents, whole = pictures(10), LatentCache(continuous(tokenizers), tmp_path / "whole", batch_size=2)
    whole.prepare(documents)
    with monkeypatch.context() as patch:
        sizes = count_encoded(tokenizers["image"], patch, fail_after=3)
        with pytest.raises(KeyboardInterrupt):
            LatentCache(continuous(tokenizers), tmp_path / "parts", batch_size=2).prepare(documents)
        assert sizes == [2, 2, 2]
    sizes = count_encoded(tokenizers["image"], monkeypatch)
    resumed = LatentCache(continuous(tokenizers), tmp_path / "parts", batch_size=2)
    resumed.prepare(documents)
    assert sizes == [2, 2]
    assert all(map(torch.equal, means(whole, documents), means(resumed, documents)))


def test_files_grow_while_media_are_encoded(tokenizers, tmp_path):
    media = [document.segments[0].content for document in pictures(9)]
    store = LatentStore(tmp_path, chunk=4, write_seconds=0.0)
    counts = []
    for _ in store.encode("image", tokenizers["image"], media, 2):
        sizes = {path.name: path.stat().st_size for path in tmp_path.rglob("*.safetensors")}
        counts.append(len(sizes))
    assert counts == [0, 1, 1, 2, 2]  # a list is given first and written then
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    assert sum(map(len, store.encode("image", tokenizers["image"], media, 2))) == 9


def test_runs_with_other_media_or_another_tokenizer_share_a_folder(tokenizers, tmp_path, monkeypatch):
    documents = pictures(3)
    LatentCache(continuous(tokenizers), tmp_path).prepare(documents)
    other = continuous(small_tokenizers())
    with torch.no_grad():
        next(other["image"].parameters()).add_(0.1)
    for tokenizer in (tokenizers["image"], other["image"]):
        shared = LatentCache({"image": tokenizer}, tmp_path)
        shared.prepare(documents[:2])
        alone = LatentCache({"image": tokenizer})
        assert all(map(torch.equal, means(shared, documents[:2]), means(alone, documents[:2])))


def test_latents_of_a_run_of_an_earlier_release_are_read(tokenizers, tmp_path, monkeypatch):
    documents = pictures(3)
    media = [document.segments[0].content for document in documents]
    path = tmp_path / "run" / "pages-image.safetensors"
    path.parent.mkdir()
    identity = {"fingerprint": tokenizers["image"].fingerprint(), "media": media_hash("image", media)}
    latents = tokenizers["image"].encode(media)
    write_latents(path, latents, identity)
    sizes = count_encoded(tokenizers["image"], monkeypatch)

    def run(tokenizer, wanted) -> LatentCache:
        cache = LatentCache({"image": tokenizer}, tmp_path / "shared", run_folder=tmp_path / "run")
        cache.prepare(wanted, "pages")
        return cache

    found = means(run(tokenizers["image"], documents), documents)
    assert sizes == []
    assert all(map(torch.equal, found, [each.mean for each in latents]))
    with pytest.raises(ValueError, match=r"pages-image.safetensors: latents of other media"):
        run(tokenizers["image"], documents[:2])
    other = small_tokenizers()["image"]
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    with pytest.raises(ValueError, match=r"pages-image.safetensors: latents of another tokenizer"):
        run(other, documents)


def test_a_broken_file_is_named_in_one_line(tokenizers, tmp_path):
    cache, documents = continuous(tokenizers), pictures(3)
    LatentCache(cache, tmp_path).prepare(documents)
    (path,) = tmp_path.rglob("*.safetensors")
    whole = path.read_bytes()
    save_weights(tmp_path / "plain", {"mean": torch.ones(1)})  # weights, but no latents
    for broken in (b"", whole[:6], whole[: len(whole) // 2], whole[:-1], (tmp_path / "plain").read_bytes()):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=rf"{path.name}: not readable .*; delete it to go on"):
            LatentCache(cache, tmp_path).prepare(documents)


def test_a_cache_folder_that_cannot_be_written_says_how_to_choose_another(tokenizers, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.*encoded media cannot be kept here.*LATENTLM_CACHE"):
        LatentCache(continuous(tokenizers), tmp_path / "file").prepare(pictures(1))


def test_reading_and_encoding_are_shown_with_rate_and_time_left(tokenizers, monkeypatch, capsys):
    monkeypatch.setattr(progress, "FIRST_SECONDS", 0.0)
    cache = LatentCache(continuous(tokenizers), batch_size=2)
    cache.prepare(pictures(4), quiet=False)
    reading, encoding = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"reading: 1 of 4 documents, [\d.,]+ per second, \d+ s left", reading)
    assert re.fullmatch(r"encoding image: 2 of 4 media, [\d.,]+ per second, \d+ s left", encoding)
    cache.prepare(pictures(4))
    assert capsys.readouterr().err == ""


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
