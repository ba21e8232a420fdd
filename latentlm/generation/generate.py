"""The face of a trained model: load, save, generate, score.

Place in the flow: 4, media ──tokenizers──▶ prompt ──engine──▶ tokens, latents ──tokenizers──▶ media.
A checkpoint directory is self-contained: `config.json`, `model.safetensors`, `ema.safetensors`, `tokenizers/`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from ..data.cache import LatentCache
from ..data.packing import DocumentEncoder, pack
from ..model.latentlm import LatentLM
from ..types import IGNORE, Audio, Document, GenerationOutput, Image, Segment, Speech, Text
from .engine import Engine, Event, Task

TARGETS = ("text", "image", "speech", "auto")


@dataclass(frozen=True)
class Request:
    """One thing to generate. `to` "auto" lets the model choose what follows, until it ends the document."""

    prompt: Document
    to: str
    guidance: float = 1.0
    steps: int = 20
    seed: int = 0
    temperature: float = 0.0
    max_tokens: int = 256
    max_latents: int = 512
    solver: str | None = None


@dataclass(frozen=True)
class Scores:
    """What the model thinks of a document: nats of its text and of its span ends, mean diffusion loss a modality."""

    text_nats: float
    num_text_tokens: int
    num_text_bytes: int
    end_nats: float = 0.0
    diffusion: dict[str, float] = field(default_factory=dict)

    @property
    def bits_per_byte(self) -> float:
        return self.text_nats / (0.6931471805599453 * max(1, self.num_text_bytes))


class Pipeline:
    """A model with its tokenizers. Made by `latentlm.load`."""

    def __init__(self, model: LatentLM, tokenizers: dict):
        self.model = model.eval()
        self.tokenizers = tokenizers
        self.encoder = DocumentEncoder(tokenizers["text"])

    # ------------------------------------------------------------------ generate

    def generate(
        self,
        prompt: str | Sequence | Document,
        to: str = "text",
        *,
        guidance: float = 1.0,
        steps: int = 20,
        seed: int = 0,
        temperature: float = 0.0,
        voice: Audio | None = None,
        max_tokens: int = 256,
        max_latents: int = 512,
        solver: str | None = None,
        num: int = 1,
    ) -> list:
        """`num` answers to one prompt: strings, PIL images or Audio, by `to`; seeds are seed, seed + 1, …

        prompt: a string, a Document, or a list of strings, PIL images, Audio and segments, in order. voice: a clip of
        the voice that the speech should have. guidance: 1 is off. steps: of the solver, a latent.
        Raises ValueError for an empty prompt, an unknown target, or one that the model was not built for.
        """
        document = as_prompt(prompt, voice)
        common = {"guidance": guidance, "steps": steps, "temperature": temperature, "solver": solver}
        limits = {"max_tokens": max_tokens, "max_latents": max_latents}
        requests = [Request(document, to, seed=seed + k, **common, **limits) for k in range(num)]
        outputs = self.generate_batch(requests)
        if to == "auto":
            return [list(output.segments) for output in outputs]
        return [_media(output.segments[0]) for output in outputs]

    def generate_batch(self, requests: Sequence[Request]) -> list[GenerationOutput]:
        """All requests at once; each answer is what the request would get alone."""
        if not requests:
            return []
        tasks = self._tasks(requests)
        collected: list[list[tuple[str, list]]] = [[] for _ in tasks]
        for event in Engine(self.model, tasks).run():
            _collect(collected[event.task], event)
        segments = self._decode(collected, [request.to for request in requests])
        return [
            GenerationOutput(tuple(parts), task.finish_reason, task.num_tokens + task.num_latents)
            for parts, task in zip(segments, tasks, strict=True)
        ]

    def stream(self, request: Request) -> Iterator[str | Audio | Segment]:
        """Partial results of one request as they come: pieces of text, chunks of sound, whole pictures."""
        decoder, ids, sent, latents = None, [], "", []
        text = self.tokenizers["text"]
        for event in Engine(self.model, self._tasks([request])).run():
            if event.kind == "token":
                ids.append(event.value)
                whole = text.decode(ids)
                if not whole.endswith("\ufffd"):  # half a character waits for its other bytes
                    yield whole[len(sent) :]
                    sent = whole
            elif event.kind == "open":
                latents = []
                decoder = self.tokenizers["speech"].stream_decoder() if event.value == "speech" else None
            elif event.kind == "latent" and decoder is not None:
                yield Audio(decoder.push(event.value[None]), self.tokenizers["speech"].sample_rate)
            elif event.kind == "latent":
                latents.append(event.value)
            elif decoder is not None:
                yield Audio(decoder.flush(), self.tokenizers["speech"].sample_rate)
                decoder = None
            else:
                yield Image(self.tokenizers[event.value].decode([torch.stack(latents)])[0])
        if decoder is not None:  # the context filled up inside the span
            yield Audio(decoder.flush(), self.tokenizers["speech"].sample_rate)
        if ids and text.decode(ids) != sent:
            yield text.decode(ids)[len(sent) :]

    def _tasks(self, requests: Sequence[Request]) -> list[Task]:
        """Requests as the engine wants them; their media are encoded together."""
        for request in requests:
            self._check(request)
        cache = LatentCache({name: t for name, t in self.tokenizers.items() if name != "text"})
        cache.prepare(request.prompt for request in requests)
        return [self._task(request, cache.resolve(request.prompt)) for request in requests]

    def _task(self, request: Request, document: Document) -> Task:
        prompt = self.encoder(document, closed=False)
        if request.to in self.model.modalities:
            self.encoder.open_span(prompt, request.to)
        values = {name: getattr(request, name) for name in ("to", "guidance", "steps", "solver", "temperature")}
        return Task(
            prompt,
            **values,
            max_tokens=request.max_tokens,
            max_latents=request.max_latents,
            generator=torch.Generator(self.model.embed_tokens.weight.device).manual_seed(request.seed),
        )

    def _check(self, request: Request) -> None:
        if request.to not in TARGETS:
            close = difflib.get_close_matches(request.to, TARGETS, n=1)
            hint = f", did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"unknown target {request.to!r}{hint} (known: {', '.join(TARGETS)})")
        if request.to not in ("text", "auto") and request.to not in self.model.modalities:
            raise ValueError(f"this model has no {request.to}; it has text, {', '.join(self.model.modalities)}")
        for name in ("steps", "max_tokens", "max_latents"):
            if getattr(request, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(request, name)}")
        if request.to == "text" and request.guidance != 1.0:
            raise ValueError(f"guidance {request.guidance} has no meaning for text; it is for image and speech")
        if request.temperature < 0:
            raise ValueError(f"temperature must not be negative, got {request.temperature}")

    def _decode(self, collected: list[list[tuple[str, list]]], targets: list[str]) -> list[list[Segment]]:
        """Latents of all requests ──▶ media, each modality in one go."""
        results: list[list[Segment]] = [[] for _ in collected]
        waiting: dict[str, list[tuple[int, int, torch.Tensor]]] = {}
        for number, (spans, to) in enumerate(zip(collected, targets, strict=True)):
            for name, values in spans or [(to, [])]:
                place = len(results[number])
                if name == "text":
                    results[number].append(Text(self.tokenizers["text"].decode(values)))
                    continue
                dim = self.model.modalities[name].latent_dim
                stacked = torch.stack(values) if values else torch.zeros(0, dim)
                waiting.setdefault(name, []).append((number, place, stacked))
                results[number].append(Text(""))  # replaced below
        for name, entries in waiting.items():
            media = self.tokenizers[name].decode([latents.float() for _, _, latents in entries])
            for (number, place, _), item in zip(entries, media, strict=True):
                results[number][place] = Image(item) if name == "image" else Speech(item)
        return results

    # --------------------------------------------------------------------- score

    @torch.inference_mode()
    def score(self, document: Document, seed: int = 0) -> Scores:
        """Log-likelihood of the text that counts as target, and the diffusion losses, of one document."""
        cache = LatentCache({name: t for name, t in self.tokenizers.items() if name != "text"})
        encoded = self.encoder(cache.resolve(document))
        dims = {name: m.latent_dim for name, m in self.model.modalities.items()}
        batch = pack([encoded], dims, torch.Generator().manual_seed(seed)).to(self.model.embed_tokens.weight.device)
        sums = self.model(batch, torch.Generator(batch.ids.device).manual_seed(seed + 1))
        counts = batch.target_counts()
        return Scores(
            text_nats=float(sums["text"]),
            num_text_tokens=int((batch.text_targets != IGNORE).sum()),
            num_text_bytes=sum(len(s.text.encode()) for s in document.segments if isinstance(s, Text) and s.loss),
            end_nats=float(sums["end"]),
            diffusion={name: float(sums[name]) / counts[name] for name in dims if counts[name]},
        )


def as_prompt(prompt: str | Sequence | Document, voice: Audio | None = None) -> Document:
    """Anything a user may pass as a prompt, as a Document of condition segments."""
    if isinstance(prompt, Document):
        segments = list(prompt.segments)
    else:
        segments = [_as_segment(part) for part in ([prompt] if isinstance(prompt, str) else prompt)]
    if voice is not None:
        segments.insert(0, Speech(voice))
    if not segments or any(isinstance(s, Text) and not s.text.strip() for s in segments):
        raise ValueError("the prompt is empty")
    return Document(tuple(replace(segment, condition=True, loss=False) for segment in segments))


def _as_segment(part) -> Segment:
    if isinstance(part, Segment):
        return part
    if isinstance(part, str):
        return Text(part)
    if isinstance(part, Audio):
        return Speech(part)
    from PIL import Image as PILImage

    if isinstance(part, PILImage.Image):
        return Image(part)
    raise ValueError(f"a prompt is made of text, pictures and sound, not {type(part).__name__}")


def _media(segment: Segment):
    return segment.text if isinstance(segment, Text) else segment.content


def _collect(spans: list[tuple[str, list]], event: Event) -> None:
    if event.kind == "open":
        spans.append((event.value, []))
    elif event.kind == "latent":
        spans[-1][1].append(event.value)
    elif event.kind == "token":
        if not spans or spans[-1][0] != "text":
            spans.append(("text", []))
        spans[-1][1].append(event.value)
