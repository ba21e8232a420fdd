"""Bits per byte of held-out text, beside those of simple compressors trained on the same text.

Place in the flow: pipeline.score ──▶ nats ──▶ bits per byte. The bits include the end of each document, for the model
(<EOS>) and for the references (a line end); the bytes are those of the text alone.
References: every token equally likely; a byte n-gram model (interpolated, Witten-Bell) of order 0 and 2; LZMA, by the
bytes that the held-out text adds to the compressed training text.
"""

from __future__ import annotations

import lzma
import math
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from ..data import documents
from ..data.embedded import prose, shapes
from ..generation.pipeline import Pipeline
from ..types import Document, Text
from .protocol import Protocol, answer_text, ask
from .report import Exhibit, Gallery, Report

NUM_TRAIN_SENTENCES, NUM_SENTENCES = 2000, 60
"""Sentences of the shapes world; the held-out ones have about as many bytes as the held-out prose."""
NGRAM = "order-2 byte n-gram"
OPENINGS = ("The Congress shall have Power ", "The President ", "there is a red ", "No Person ", "We ", "there are ")


def corpora(num_documents: int, sources: Collection[str] | None = None) -> dict[str, dict[str, list[str]]]:
    """Texts by corpus and split, of the corpora in `sources` (None: all); of each at most `num_documents` held out."""
    sentences = {
        split: [shapes.sentence(split, index) for index in range(num)]
        for split, num in (("train", min(NUM_TRAIN_SENTENCES, 10 * num_documents)), ("held_out", NUM_SENTENCES))
    }
    found = {"prose": {split: prose.load(split) for split in ("train", "held_out")}, "shapes": sentences}
    found = {name: texts for name, texts in found.items() if sources is None or name in sources}
    for texts in found.values():
        texts["held_out"] = texts["held_out"][:num_documents]
    return found


def evaluate_text(
    pipeline: Pipeline, protocol: Protocol, report: Report, sources: Collection[str] | None = None
) -> None:
    """Bits per byte of each corpus named in `sources` (None: all) and of all together, with their references; and a few
    continuations."""
    found = _that_fit(pipeline, corpora(protocol.counts.text_documents, sources), report)
    if not found:
        return
    model: dict[str, tuple[float, int]] = {}
    train = [text for texts in found.values() for text in texts["train"]]
    counts = count_ngrams(train, 2)
    for name, texts in found.items():
        model[name] = _score(pipeline, texts["held_out"], protocol.seed)
        what = f"held-out {_what(name)}, {len(texts['held_out'])} documents, end of document included"
        how = protocol.describe_scores(what)
        bits, num_bytes = model[name]
        reference = ngram_bits(texts["held_out"], counts, 2) / num_bytes
        report.add(f"text.{name}_bits_per_byte", bits / num_bytes, how, reference=reference, reference_name=NGRAM)
    held_out = [text for texts in found.values() for text in texts["held_out"]]
    num_bytes = sum(total for _, total in model.values())
    how = f"{len(held_out)} held-out documents: {' and '.join(map(_what, found))}, end of document included"
    order_2 = ngram_bits(held_out, counts, 2) / num_bytes
    report.add(
        "text.bits_per_byte",
        sum(bits for bits, _ in model.values()) / num_bytes,
        protocol.describe_scores(how),
        reference=order_2,
        reference_name=NGRAM,
    )
    trained_on = f"trained on {len(train)} training texts of the same sources"
    report.add(
        "text.bits_per_byte_ngram0",
        ngram_bits(held_out, counts, 0) / num_bytes,
        f"byte frequencies {trained_on}; {how}",
    )
    report.add("text.bits_per_byte_ngram2", order_2, f"{NGRAM} {trained_on}; {how}")
    report.add(
        "text.bits_per_byte_lzma", lzma_bits(held_out, train) / num_bytes, f"LZMA primed with the training texts; {how}"
    )
    uniform = uniform_bits(pipeline.tokenizers["text"], held_out) / num_bytes
    report.add("text.bits_per_byte_uniform", uniform, f"every token equally likely, as before training; {how}")
    report.galleries.append(_continuations(pipeline, protocol))


def _that_fit(pipeline: Pipeline, found: dict[str, dict[str, list[str]]], report: Report) -> dict:
    """`found` without the held-out documents that are longer than the context; their number is noted in the report."""
    limit = pipeline.model.config.transformer.context_length
    kept = {}
    for name, texts in found.items():
        fitting = [text for text in texts["held_out"] if len(pipeline.tokenizers["text"].encode(text)) < limit]
        left_out = len(texts["held_out"]) - len(fitting)
        if left_out:
            report.notes.append(f"text.{name}_bits_per_byte: without {left_out} documents longer than the context.")
        if fitting:
            kept[name] = texts | {"held_out": fitting}
    if not kept:
        report.leave_out("text", "every document is longer than the context")
    return kept


def _score(pipeline: Pipeline, texts: Sequence[str], seed: int) -> tuple[float, int]:
    """The bits of all texts together, and the number of their bytes."""
    scores = [pipeline.score(documents.text(text), seed) for text in texts]
    return sum(s.text_nats for s in scores) / math.log(2), sum(s.num_text_bytes for s in scores)


def _continuations(pipeline: Pipeline, protocol: Protocol) -> Gallery:
    prompts = [Document((Text(opening, condition=True, loss=False),)) for opening in OPENINGS]
    outputs = ask(pipeline, prompts, "text", protocol, "text")
    exhibits = tuple(
        Exhibit(opening.strip() + " …", answer_text(output)) for opening, output in zip(OPENINGS, outputs, strict=True)
    )
    return Gallery("written", "Text written", "The opening is given; the model continues it, greedily.", exhibits)


def _what(name: str) -> str:
    return {"prose": "prose of the Constitution", "shapes": "sentences of the shapes world"}[name]


# ------------------------------------------------------------------ references


def count_ngrams(texts: Sequence[str], order: int) -> dict[bytes, Counter]:
    """For each context of up to `order` bytes, how often each byte follows; texts are between line ends."""
    counts: dict[bytes, Counter] = {}
    for text in texts:
        line = b"\n" * order + text.encode() + b"\n"
        for place in range(order, len(line)):
            for length in range(order + 1):
                counts.setdefault(line[place - length : place], Counter())[line[place]] += 1
    return counts


def ngram_bits(texts: Sequence[str], counts: dict[bytes, Counter], order: int) -> float:
    """Bits of `texts` by the interpolated Witten-Bell model; counts: of `count_ngrams`, up to `order` or longer."""
    bits = 0.0
    totals = {context: sum(followers.values()) for context, followers in counts.items() if len(context) <= order}
    for text in texts:
        line = b"\n" * order + text.encode() + b"\n"
        for place in range(order, len(line)):
            probability = 1 / 256
            for length in range(order + 1):
                followers = counts.get(line[place - length : place])
                if followers is None:
                    break
                # Witten-Bell: the shorter context gets a weight equal to the number of distinct followers
                kinds, total = len(followers), totals[line[place - length : place]]
                probability = (followers[line[place]] + kinds * probability) / (total + kinds)
            bits -= math.log2(probability)
    return bits


def lzma_bits(texts: Sequence[str], train: Sequence[str]) -> float:
    """Bits by which `texts` lengthen the compressed training text."""
    before = "\n".join([*train, ""]).encode()
    sizes = [len(lzma.compress(data, preset=9)) for data in (before, before + "\n".join([*texts, ""]).encode())]
    return 8.0 * (sizes[1] - sizes[0])


def uniform_bits(tokenizer, texts: Sequence[str]) -> float:
    """Bits of `texts` where every token of the vocabulary is equally likely, ends included."""
    num_tokens = sum(len(tokenizer.encode(text)) + 1 for text in texts)
    return num_tokens * float(np.log2(tokenizer.vocab_size))
