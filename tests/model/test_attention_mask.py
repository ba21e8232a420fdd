"""Who attends to whom: the mask against a loop that spells the rule out, and the Transformer under it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import random_latents

from latentlm.config import TransformerConfig
from latentlm.data.packing import DocumentEncoder, Packer
from latentlm.modalities.image import Image
from latentlm.modalities.speech import Speech
from latentlm.model.transformer import Transformer, attention_mask
from latentlm.tokenizers.text import TextTokenizer
from latentlm.types import Document, Text

pieces = st.tuples(st.integers(1, 4), st.booleans())  # positions, and whether they are a span
rows = st.lists(st.lists(st.lists(pieces, min_size=1, max_size=4), max_size=3), min_size=1, max_size=3)


def ids_of(packing: list, padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """documents and spans (B, T) of rows of documents of pieces, at least `padding` positions at the end of each."""
    length = max(sum(size for document in row for size, _ in document) for row in packing) + padding
    documents, spans = torch.full((2, len(packing), length), -1)
    number = span = 0
    for r, row in enumerate(packing):
        place = 0
        for document in row:
            for size, is_span in document:
                documents[r, place : place + size] = number
                if is_span:
                    spans[r, place : place + size] = span
                    span += 1
                place += size
            number += 1
    return documents, spans


@given(rows, st.integers(1, 2), st.booleans())
@settings(deadline=None, max_examples=150)
def test_the_mask_is_the_rule(packing, padding, free):
    """Adjacent spans, spans that begin or end a document, and padding occur by chance, and often."""
    documents, spans = ids_of(packing, padding)
    mask = attention_mask(documents, spans, free)
    B, T = documents.shape
    assert mask.shape == (B, 1, T, T)
    for b in range(B):
        for i in range(T):
            for j in range(T):
                same_document = documents[b, i].item() == documents[b, j].item()
                inside = free and spans[b, i].item() == spans[b, j].item() != -1
                assert mask[b, 0, i, j].item() == (same_document and (j <= i or inside))


def test_without_freedom_spans_are_not_read():
    documents = torch.tensor([[0, 0, 1, -1]])
    expected = attention_mask(documents, torch.tensor([[0, 0, -1, -1]]), False)
    assert torch.equal(attention_mask(documents, None, False), expected)


segments = st.one_of(
    st.integers(1, 3).map(lambda n: Text("x" * n)),
    st.just(Image(random_latents(4, 6))),
    st.integers(1, 3).map(lambda n: Speech(random_latents(n, 5))),
)


@given(st.lists(st.lists(segments, min_size=1, max_size=3), max_size=5))
@settings(deadline=None, max_examples=60)
def test_the_packer_numbers_the_spans(lists):
    encoder, packer = DocumentEncoder(TextTokenizer()), Packer(3, 40, {"image": 6, "speech": 5})
    placed = [document for document in (encoder(Document(tuple(s))) for s in lists) if packer.add(document)]
    batch = packer.batch()
    expected, number = [[-1] * 40 for _ in range(3)], 0
    for document, (_, row, start) in zip(placed, packer.placed, strict=True):
        for span in document.spans:
            for place in range(len(span.latents)):
                expected[row][start + span.start + place] = number
            number += 1
    assert batch.spans.tolist() == expected
    assert torch.equal(batch.spans >= 0, batch.ids == encoder.special.latent)


@pytest.mark.parametrize("free", [False, True])
def test_a_free_span_sees_all_of_itself_and_nothing_beyond(free):
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(width=16, num_layers=1, num_heads=2)).double()
    documents = torch.zeros(1, 8, dtype=torch.int64)
    spans = torch.tensor([[-1, 0, 0, 0, 1, 1, -1, -1]])
    x = torch.randn(1, 8, 16, dtype=torch.float64, requires_grad=True)
    hidden = model(x, torch.arange(8)[None], documents, spans, free_spans=free)
    for place, last in enumerate((0, 3, 3, 3, 5, 5, 6, 7) if free else range(8)):
        (gradient,) = torch.autograd.grad(hidden[0, place].sum(), x, retain_graph=True)
        reached = gradient[0].abs().sum(-1) > 0
        assert reached.tolist() == [other <= last for other in range(8)]
