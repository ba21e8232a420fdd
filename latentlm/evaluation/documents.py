"""Documents of one's own, held out: what the model makes of them, and what it answers to their conditions.

Place in the flow: a manifest that was not trained on ──▶ pipeline.score, generate ──▶ the report. Nothing is known of
what pictures and sounds show, so what is generated is shown, not judged; losses stand beside what they become under
the condition of another document: a model that does not listen to its conditions loses nothing by that. Documents of
shards hold latents, of which losses are all that can be measured.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..config.modalities import modality
from ..data.cache import LatentCache
from ..generation.pipeline import Pipeline
from ..generation.scores import Scores, bits_per_byte, is_plain, mean_losses
from ..media.sound import Audio
from ..modalities.image import Image
from ..modalities.speech import Speech
from ..types import Document, Latents, Segment, Text
from .protocol import Protocol, answer_media, answer_text, ask, before_answer
from .recogniser import num_word_errors
from .reconstruction import reconstruct_images, reconstruct_speech
from .report import Exhibit, Gallery, Report, interval
from .text import uniform_bits

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

SHOWN = {"text": 16, "image": 24, "speech": 8}
SPOKEN_SECONDS = 30.0
"""An utterance that has not ended by then is cut."""
LONGER = 2
"""Other answers are cut at so many times the longest real one."""


def evaluate_documents(
    pipeline: Pipeline, protocol: Protocol, report: Report, documents: Sequence[Document], origin: str
) -> None:
    """Losses of the documents (at most `counts.documents`, spread over all), and answers to those that end in one.

    origin: where they come from, for the protocol. Raises UserError for media that the model has no tokenizer of.
    """
    every = -(-len(documents) // protocol.counts.documents) or 1
    chosen = [documents[i] for i in range(0, len(documents), every)]
    cache = LatentCache({name: t for name, t in pipeline.tokenizers.items() if name != "text"})
    limit = pipeline.model.config.transformer.context_length
    fitting = [document for document in chosen if len(pipeline.encoder(cache.resolve(document))) <= limit]
    if len(fitting) < len(chosen):
        report.notes.append(f"documents: without {len(chosen) - len(fitting)} longer than the context.")
    if not fitting:
        report.leave_out("documents", "all are longer than the context" if chosen else "there are none")
        return
    plain = [document for document in fitting if is_plain(document)]
    _score_texts(pipeline, protocol, report, plain, origin)
    others = [cache.resolve(document) for document in fitting if not is_plain(document)]
    _score_others(pipeline, protocol, report, others, origin)
    media = [document for document in fitting if not _holds_latents(document)]
    if len(media) < len(fitting):
        report.notes.append(
            f"documents: {len(fitting) - len(media)} from shards, which hold no media, are only scored."
        )
    for name in ("text", *pipeline.model.modalities):
        asked = [document for document in media if _answer_of(document) == name]
        if asked and name == "text":
            _write(pipeline, protocol, report, asked, origin)
        elif asked and modality(name).ends_itself:
            _end(pipeline, protocol, report, name, asked, origin)
        elif asked:
            _draw(pipeline, protocol, report, name, asked, origin)
    reconstruct_documents(pipeline.tokenizers, protocol, report, media, origin)


def _holds_latents(document: Document) -> bool:
    return any(isinstance(segment.content, Latents) for segment in document.segments if not isinstance(segment, Text))


# ------------------------------------------------------------------ reconstruction


def reconstruct_documents(
    tokenizers: Mapping, protocol: Protocol, report: Report, documents: Sequence[Document], origin: str
) -> None:
    """Their first pictures and sounds (`counts.reconstructions` of each) through the tokenizers alone."""
    media: dict[str, dict[int, PILImage | Audio]] = {"image": {}, "speech": {}}
    for document in documents:
        for segment in document.segments:
            name = segment.modality
            if name in media and len(media[name]) < protocol.counts.reconstructions:
                media[segment.modality][id(segment.content)] = segment.content
    note = f"Left the picture of {origin}, right what the tokenizer makes of its latents."
    if media["image"] and "image" in tokenizers:
        images = list(media["image"].values())
        made = reconstruct_images(tokenizers["image"], report, "documents.image", images, f"pictures of {origin}")
        exhibits = [Exhibit("", picture=a, reference=b) for a, b in zip(made, images, strict=True)]
        report.galleries.append(
            Gallery("documents-image-tokenizer", "Pictures reconstructed", note, tuple(exhibits[: SHOWN["image"]]))
        )
    if media["speech"] and "speech" in tokenizers:
        clips = list(media["speech"].values())
        made = reconstruct_speech(tokenizers["speech"], report, "documents.speech", clips, f"clips of {origin}")
        pairs = list(zip(clips, made, strict=True))[: SHOWN["speech"] // 2]
        exhibits = [Exhibit(title, sound=a) for pair in pairs for title, a in zip(("real", "again"), pair, strict=True)]
        note = f"Each clip of {origin}, then what the tokenizer makes of its latents."
        report.galleries.append(Gallery("documents-speech-tokenizer", "Speech reconstructed", note, tuple(exhibits)))


# ------------------------------------------------------------------ losses


def _score_texts(pipeline: Pipeline, protocol: Protocol, report: Report, texts: list[Document], origin: str) -> None:
    scores = [pipeline.score(document, protocol.seed) for document in texts]
    written = [s.text for document in texts for s in document.segments if isinstance(s, Text) and s.loss]
    for value in bits_per_byte(scores).values():
        report.add(
            "documents.bits_per_byte",
            value,
            protocol.describe_scores(f"{len(texts)} texts of {origin}, ends included"),
            reference=uniform_bits(pipeline.tokenizers["text"], written) / sum(s.num_text_bytes for s in scores),
            reference_name="every token equally likely",
        )


def _score_others(pipeline: Pipeline, protocol: Protocol, report: Report, others: list[Document], origin: str) -> None:
    scores = [pipeline.score(document, protocol.seed) for document in others]
    swapped = [pipeline.score(document, protocol.seed) for document in with_conditions_of_others(others)]
    beside = mean_losses(swapped)
    for name, loss in mean_losses(scores).items():
        unit = "nats a token" if name == "text" else pipeline.model.heads[name].unit
        report.add(
            f"documents.{name}_loss",
            loss,
            protocol.describe_scores(f"{_num_with(name, scores)} documents of {origin} with {name} to give; {unit}"),
            reference=beside[name],
            reference_name="under another's condition",
        )


def with_conditions_of_others(documents: Sequence[Document]) -> list[Document]:
    """Each document with the conditions of the next that is made alike and given something else; or as it is."""
    alike: dict[tuple, list[int]] = defaultdict(list)
    for index, document in enumerate(documents):
        alike[tuple((s.modality, s.condition) for s in document.segments)].append(index)
    swapped = list(documents)
    for group in alike.values():
        for place, index in enumerate(group):
            given = _conditions(documents[index])
            following = (_conditions(documents[other]) for other in group[place + 1 :] + group[:place])
            other = iter(next((those for those in following if _content(those) != _content(given)), given))
            segments = tuple(next(other) if s.condition else s for s in documents[index].segments)
            swapped[index] = documents[index].with_segments(segments)
    return swapped


def _conditions(document: Document) -> list[Segment]:
    return [segment for segment in document.segments if segment.condition]


def _content(segments: list[Segment]) -> list:
    """To compare by: equal texts are equal, media are where they are the same file."""
    return [s.text if isinstance(s, Text) else id(s.content) for s in segments]


def _num_with(name: str, scores: Sequence[Scores]) -> int:
    return sum((s.num_text_bytes if name == "text" else s.num_latents.get(name, 0)) > 0 for s in scores)


# ------------------------------------------------------------------ answers


def _answer_of(document: Document) -> str | None:
    """The modality of the last segment, where that is the only target and something is given before it."""
    *given, last = document.segments
    return last.modality if given and last.loss and not any(segment.loss for segment in given) else None


def _write(pipeline: Pipeline, protocol: Protocol, report: Report, asked: list[Document], origin: str) -> None:
    wanted = [document.segments[-1].text.strip() for document in asked]
    outputs = ask(pipeline, [before_answer(document) for document in asked], "text", protocol, "documents")
    answers = [answer_text(output) for output in outputs]
    right = [answer == text for answer, text in zip(answers, wanted, strict=True)]
    how = protocol.describe(f"{len(asked)} documents of {origin} that end in a text to give")
    rate = float(np.mean(right))
    report.add(
        "documents.exact_match",
        rate,
        f"{how}; the text is the real one",
        reference=Counter(wanted).most_common(1)[0][1] / len(wanted),
        reference_name="the most frequent text",
        interval=interval(rate, len(right)),
    )
    errors = sum(num_word_errors(answer, text) for answer, text in zip(answers, wanted, strict=True))
    report.add("documents.wer", errors / sum(len(text.split()) for text in wanted), f"{how}; word error rate")
    exhibits = [
        replace(_exhibit(document, answer), title=f"{_given(document)} → {text}", mark=ok)
        for document, answer, text, ok in zip(asked, answers, wanted, right, strict=True)
    ]
    note = "What was given → the real text, and what the model wrote."
    for name, title, heard in (("text", "Texts written", False), ("sounds", "Sounds written down", True)):
        some = tuple(item for item in exhibits if (item.sound is not None) == heard)
        if some:
            report.galleries.append(Gallery(f"documents-{name}", title, note, some[: SHOWN["text"]]))


def _draw(
    pipeline: Pipeline, protocol: Protocol, report: Report, name: str, asked: list[Document], origin: str
) -> None:
    """Answers of a modality of a fixed grid, beside the real ones."""
    shown = asked[: SHOWN["image"]]
    outputs = ask(pipeline, [before_answer(document) for document in shown], name, protocol, "documents")
    exhibits = tuple(
        replace(_exhibit(document), picture=answer_media(output), reference=document.segments[-1].content)
        for document, output in zip(shown, outputs, strict=True)
    )
    note = protocol.describe(f"Left the picture of {origin}, right what the model drew", "documents") + "."
    report.galleries.append(Gallery(f"documents-{name}", "Pictures drawn", note, exhibits))


def _end(pipeline: Pipeline, protocol: Protocol, report: Report, name: str, asked: list[Document], origin: str) -> None:
    """Answers of a modality whose spans the model ends: what was made, whether it ended, and how long it is."""
    found, shown = modality(name), asked[: SHOWN.get(name, SHOWN["speech"])]
    prompts = [before_answer(document) for document in shown]
    cache = LatentCache({name: pipeline.tokenizers[name]})
    answers = [cache.resolve(Document((document.segments[-1],))) for document in shown]
    longest = max(len(answer.segments[0].content) for answer in answers)
    outputs = ask(pipeline, prompts, name, protocol, "documents", SPOKEN_SECONDS, LONGER * longest)
    real = [document.segments[-1].content for document in shown]
    ended = [output.finish_reason == "stop" for output in outputs]
    exhibits = tuple(
        replace(
            _exhibit(document, f"{'ended' if stopped else 'cut'}; real {found.describe(was)}"),
            **_shown(found.show(answer_media(output)), found.show(was)),
        )
        for document, output, stopped, was in zip(shown, outputs, ended, real, strict=True)
    )
    how = protocol.describe(f"{len(shown)} documents of {origin} that end in {name} to give", "documents")
    prefix = "documents" if name == "speech" else f"documents.{name}"
    rate = float(np.mean(ended))
    report.add(f"{prefix}.stop_rate", rate, f"{how}; ended by the model itself", interval=interval(rate, len(ended)))
    made = sum(found.length(answer_media(output)) for output in outputs)
    report.add(
        f"{prefix}.length_ratio", made / sum(map(found.length, real)), f"{how}; length made over the real",
        reference=1.0, reference_name="real",
    )  # fmt: skip
    report.galleries.append(Gallery(f"documents-{name}", f"{name.capitalize()} made", how + ".", exhibits))


def _shown(made: PILImage | Audio, real: PILImage | Audio) -> dict:
    """The fields of an exhibit: a sound, or a picture beside the real one."""
    return {"sound": made, "picture": None} if isinstance(made, Audio) else {"picture": made, "reference": real}


def _exhibit(document: Document, text: str = "") -> Exhibit:
    """What was given in words, with its first picture or, where there is none, its sound."""
    given = document.segments[:-1]
    picture = next((s.content for s in given if isinstance(s, Image)), None)
    sound = None if picture else next((s.content for s in given if isinstance(s, Speech)), None)
    return Exhibit(_given(document), text, picture=picture, sound=sound)


def _given(document: Document) -> str:
    return " ".join(s.text.strip() if isinstance(s, Text) else f"[{s.modality}]" for s in document.segments[:-1])
