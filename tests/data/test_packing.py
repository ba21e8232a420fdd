"""Sequences and packing: the layout, every target where it belongs, and rows that keep documents apart."""

import dataclasses

import PIL.Image
import pytest
import torch
from small import random_latents

from latentlm.data.packing import DocumentEncoder, Packer, pack
from latentlm.modalities.image import Image
from latentlm.modalities.speech import Speech
from latentlm.tokenizers.text import TextTokenizer
from latentlm.types import IGNORE, Document, Text

DIMS = {"image": 6, "speech": 5}


@pytest.fixture
def encoder(tokenizers):
    return DocumentEncoder(tokenizers["text"])


def image(**flags):
    return Image(random_latents(4, 6), **flags)


def speech(num=3, **flags):
    return Speech(random_latents(num, 5), **flags)


def test_text_to_image_layout(encoder):
    special = encoder.special
    document = Document((Text("ab", condition=True, loss=False), image()))
    encoded = encoder(document)
    latent, bod = special.latent, special.bod["image"]
    assert encoded.ids == [special.bos, 97, 98, bod, latent, latent, latent, latent, special.eod]
    # the prompt is not a target, but what follows it is: <BOD>; after the forced <EOD> comes <EOS>
    assert encoded.text_targets == [IGNORE, IGNORE, bod, IGNORE, IGNORE, IGNORE, IGNORE, IGNORE, special.eos]
    assert set(encoded.end_targets) == {IGNORE}
    assert [(span.modality, span.start) for span in encoded.spans] == [("image", 4)]


def test_end_of_speech_is_among_the_targets(encoder):
    encoded = encoder(Document((Text("a", condition=True, loss=False), speech(3))))
    # <BOD> and two latents go on, the last latent ends: transformers#40546 never trained this
    assert encoded.end_targets == [IGNORE, IGNORE, 0, 0, 0, 1, IGNORE]
    batch = pack([encoded], DIMS)
    assert batch.target_counts() == {"text": 2, "end": 4, "image": 0, "speech": 3}


def test_condition_speech_has_no_targets(encoder):
    encoded = encoder(Document((speech(3, condition=True, loss=False), Text("no"))))
    assert set(encoded.end_targets) == {IGNORE}
    assert not encoded.spans[0].target
    assert encoded.text_targets[-3:] == [110, 111, encoder.special.eos]


def test_unconditional_starts_at_bod(encoder):
    document = Document((Text("ab", condition=True, loss=False), image()))
    encoded = encoder(document, unconditional=True)
    assert encoded.ids[0] == encoder.special.bod["image"]
    assert len(encoded) == 6


def test_interleaved_segments_keep_their_order(encoder):
    document = Document((Text("a"), image(), Text("b"), speech(2), Text("c")))
    encoded = encoder(document)
    names = [encoder.special.names().get(i, chr(i) if i < 256 else "?") for i in encoded.ids]
    assert "".join(names) == ("<BOS>a<BOD:image>" + "<LATENT>" * 4 + "<EOD>b<BOD:speech>" + "<LATENT>" * 2 + "<EOD>c")
    targets = [t for t in encoded.text_targets if t != IGNORE]
    special = encoder.special
    assert targets == [97, special.bod["image"], 98, special.bod["speech"], 99, special.eos]


def test_open_prompt_has_no_end(encoder):
    encoded = encoder(Document((Text("a", condition=True),)), closed=False)
    assert encoded.ids == [encoder.special.bos, 97]
    assert set(encoded.text_targets) <= {IGNORE, 97}


@pytest.mark.parametrize("segments", [(), (Text(""),)])
def test_empty_documents_are_refused(encoder, segments):
    with pytest.raises(ValueError, match="segment"):
        encoder(Document(segments))


def test_media_must_be_latents(encoder):
    with pytest.raises(ValueError, match="encode it first"):
        encoder(Document((Image(PIL.Image.new("RGB", (8, 8))),)))


def test_rows_restart_positions_and_number_documents(encoder):
    documents = [encoder(Document((Text("x" * n),))) for n in (3, 2, 4)]
    packer = Packer(rows=2, length=9, latent_dims=DIMS, fill=7)
    assert all(packer.add(document) for document in documents)
    batch = packer.batch()
    assert batch.documents.tolist() == [[0, 0, 0, 0, 1, 1, 1, -1, -1], [2, 2, 2, 2, 2, -1, -1, -1, -1]]
    assert batch.positions.tolist()[0][:7] == [0, 1, 2, 3, 0, 1, 2]
    assert batch.ids[0, 7:].tolist() == [7, 7]
    assert not packer.add(encoder(Document((Text("y" * 5),))))


def test_a_document_longer_than_a_row_is_named(encoder):
    packer = Packer(rows=1, length=4, latent_dims=DIMS)
    with pytest.raises(ValueError, match="11 positions exceeds the row length of 4"):
        packer.add(encoder(Document((Text("x" * 10),))))


def test_latents_are_drawn_anew_from_their_posterior(encoder):
    document = encoder(Document((Image(random_latents(4, 6, posterior="sigma")),)))
    one, two = (pack([document], DIMS) if seed is None else _draw(document, seed) for seed in (1, 2))
    assert not torch.equal(one.latents["image"].values, two.latents["image"].values)
    assert torch.equal(one.latents["image"].means, two.latents["image"].means)
    assert torch.equal(_draw(document, 1).latents["image"].values, one.latents["image"].values)


def test_one_deviation_is_drawn_for_each_picture_of_a_batch_and_its_own_scale_is_kept(encoder):
    """PAPER §1.7: σ ~ N(0, C_σ) is one number for a whole example, not for a batch and not for a latent."""
    scales = torch.linspace(0.5, 2.0, 60)
    packer = Packer(60, 40, DIMS)
    for seed, std in enumerate(scales):
        latents = dataclasses.replace(random_latents(30, 6, seed, "sigma"), std=std)
        assert packer.add(encoder(Document((Image(latents),))))
    spans = packer.batch(torch.Generator().manual_seed(0)).latents["image"]
    noise = ((spans.values - spans.means).view(60, 180) / scales[:, None]).double()
    drawn = noise.square().mean(1).sqrt()  # |n| of every picture, n ~ N(0, 1)
    assert drawn.min() < 0.1
    assert drawn.max() > 1.8
    assert drawn.square().mean() == pytest.approx(1, abs=0.45)  # three deviations of a mean over 60
    unit = noise / drawn[:, None]
    assert unit.mean().abs() < 0.05
    assert unit.pow(4).mean() == pytest.approx(3, abs=0.15)


def test_latents_without_a_posterior_are_their_means_also_beside_others(encoder):
    packer = Packer(1, 40, DIMS)
    for posterior in ("none", "sigma", "none"):
        packer.add(encoder(Document((Image(random_latents(4, 6, posterior=posterior)),))))
    spans = packer.batch(torch.Generator().manual_seed(0)).latents["image"]
    same = (spans.values == spans.means).view(3, -1).all(1)
    assert same.tolist() == [True, False, True]


def _draw(document, seed):
    packer = Packer(1, len(document), DIMS)
    packer.add(document)
    return packer.batch(torch.Generator().manual_seed(seed))


def test_a_class_opens_its_picture_and_bod_is_its_null():
    encoder = DocumentEncoder(TextTokenizer.of_classes(["cat", "dog"]))
    special = encoder.special
    document = Document((Text("dog", condition=True, loss=False), image()))
    latents = [special.latent] * 4
    encoded = encoder(document)
    assert encoded.ids == [1, *latents, special.eod]
    assert encoded.text_targets == [IGNORE] * 5 + [special.eos]
    assert encoder(document, unconditional=True).ids == [special.bod["image"], *latents, special.eod]
    prompt = encoder(Document(document.segments[:1]), closed=False)
    encoder.open_span(prompt, "image")
    assert (prompt.ids, prompt.opens) == ([1], "image")
