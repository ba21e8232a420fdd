"""The face of a trained model: load, save, generate, score.

Place in the flow: 4, media ──tokenizers──▶ prompt ──engine──▶ tokens, latents ──tokenizers──▶ media.
A checkpoint directory is self-contained: `config.json`, `model.safetensors`, `ema.safetensors`, `tokenizers/`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from ..config.base import did_you_mean
from ..data.cache import LatentCache
from ..data.packing import DocumentEncoder, pack
from ..data.script import Script
from ..model.latentlm import LatentLM
from ..tokenizers.streaming import FeatureStream
from ..types import FEATURES, IGNORE, Audio, Document, GenerationOutput, Image, Segment, Speech, Text
from .answer import Part, answer, collect
from .engine import Engine
from .prompts import make_prompt
from .scores import Scores
from .task import Task

TARGETS = ("text", "image", "speech", "auto")

USUAL_LIMIT = 512
"""Latents of a span of speech unless a request says otherwise. A script has no such limit but the context."""


@dataclass(frozen=True)
class Request:
    """One thing to generate. `to` "auto" lets the model choose what follows, until it ends the document.

    guidance, steps: None is the model's own, `config.sampling`; text has no guidance.
    max_latents: of a span of speech; None is 512, or for models that read scripts as much as the context holds. A limit
    that is given is also the size that the cache has from the start.
    """

    prompt: Document
    to: str
    guidance: float | None = None
    steps: int | None = None
    seed: int = 0
    temperature: float = 0.0
    max_tokens: int = 256
    max_latents: int | None = None
    solver: str | None = None


class Pipeline:
    """A model with its tokenizers. Made by `latentlm.load`."""

    def __init__(self, model: LatentLM, tokenizers: dict):
        self.model = model.eval()
        self.tokenizers = tokenizers
        self.encoder = DocumentEncoder(tokenizers["text"])
        self._streams = feature_streams(model, tokenizers)

    # ------------------------------------------------------------------ generate

    def prompt(
        self,
        prompt: str | Sequence | Document | Script,
        to: str,
        voice: Audio | None = None,
        voices: Mapping[int | str, Audio] | None = None,
    ) -> Document:
        """The document of a `Request`, laid out as this model was trained; arguments and errors as in `generate`."""
        return make_prompt(prompt, to, self.model.config.prompt, voice, voices)

    def generate(
        self,
        prompt: str | Sequence | Document | Script,
        to: str = "text",
        *,
        guidance: float | None = None,
        steps: int | None = None,
        seed: int = 0,
        temperature: float = 0.0,
        voice: Audio | None = None,
        voices: Mapping[int | str, Audio] | None = None,
        max_tokens: int = 256,
        max_latents: int | None = None,
        solver: str | None = None,
        num: int = 1,
    ) -> list:
        """`num` answers to one prompt: strings, PIL images or Audio, by `to`; seeds are seed, seed + 1, …

        prompt: a string, a Document, a Script, or a list of strings, PIL images, Audio and segments, in order. voice: a
        clip of the voice that the speech should have; voices: of each speaker of a script. guidance: 1 is off. steps:
        of the solver, a latent; both are the model's own unless given. max_latents: as in `Request`.
        With `to` "auto", each answer is the list of its segments, empty where the model ends at once.
        Raises ValueError for an empty prompt, an unknown target, or one that the model was not built for.
        """
        document = self.prompt(prompt, to, voice, voices)
        common = {"guidance": guidance, "steps": steps, "temperature": temperature, "solver": solver}
        limits = {"max_tokens": max_tokens, "max_latents": max_latents}
        requests = [Request(document, to, seed=seed + k, **common, **limits) for k in range(num)]
        outputs = self.generate_batch(requests)
        if to == "auto":
            return [list(output.segments) for output in outputs]
        return [answer(output) for output in outputs]

    def generate_batch(self, requests: Sequence[Request]) -> list[GenerationOutput]:
        """All requests at once; each answer is what the request would get alone."""
        if not requests:
            return []
        tasks = self._tasks(requests)
        collected: list[list[Part]] = [[] for _ in tasks]
        for event in Engine(self.model, tasks, self._streams).run():
            collect(collected[event.task], event)
        segments = self._decode(collected, [request.to for request in requests])
        return [
            GenerationOutput(tuple(parts), task.finish_reason, task.num_tokens + task.num_latents)
            for parts, task in zip(segments, tasks, strict=True)
        ]

    def stream(self, request: Request) -> Generator[str | Audio | Segment, None, str]:
        """Partial results of one request as they come: pieces of text, chunks of sound, whole pictures.

        Nothing of a chunk of sound is kept after it was given out. The generator returns the finish reason.
        """
        name, decoder, ids, sent, latents = "text", None, [], "", []
        text = self.tokenizers["text"]
        (task,) = self._tasks([request])
        for event in Engine(self.model, [task], self._streams).run():
            if event.kind == "token":
                ids.append(event.value)
                whole = text.decode(ids)
                if not whole.endswith("\ufffd"):  # half a character waits for its other bytes
                    yield whole[len(sent) :]
                    sent = whole
            elif event.kind == "sound":
                yield Audio(event.value.cpu(), self.tokenizers[name].sample_rate)
            elif event.kind == "open":
                name, latents = event.value, []
                decoder = self.tokenizers[name].stream_decoder() if name == "speech" and not self._hears(name) else None
            elif self._hears(name):
                continue  # the sound of its latents came with them
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
        return task.finish_reason

    def _hears(self, name: str) -> bool:
        """Whether the engine decodes this modality itself, to hear what it said."""
        return name in self._streams

    def _tasks(self, requests: Sequence[Request]) -> list[Task]:
        """Requests as the engine wants them; their media are encoded together."""
        requests = [self._settled(request) for request in requests]
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
        usual = None if self.model.config.prompt == "vibevoice" else USUAL_LIMIT
        return Task(
            prompt,
            **values,
            max_tokens=request.max_tokens,
            max_latents=request.max_latents or usual,
            generator=torch.Generator(self.model.embed_tokens.weight.device).manual_seed(request.seed),
        )

    def _settled(self, request: Request) -> Request:
        """`request` with the model's own sampling where it says nothing."""
        own = self.model.config.sampling
        guidance = 1.0 if request.to == "text" else own.guidance
        return replace(
            request,
            guidance=guidance if request.guidance is None else request.guidance,
            steps=own.steps if request.steps is None else request.steps,
        )

    def _check(self, request: Request) -> None:
        if request.to not in TARGETS:
            raise ValueError(f"unknown target {request.to!r}{did_you_mean(request.to, TARGETS)}")
        if request.to not in ("text", "auto") and request.to not in self.model.modalities:
            raise ValueError(f"this model has no {request.to}; it has text, {', '.join(self.model.modalities)}")
        if request.to in ("text", "auto") and self.tokenizers["text"].is_classes:
            raise ValueError(f"this model makes pictures of classes; it writes no text (--to {request.to})")
        for name in ("steps", "max_tokens", "max_latents"):
            if getattr(request, name) is not None and getattr(request, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(request, name)}")
        if not -(2**63) <= request.seed < 2**64:
            raise ValueError(f"seed must be at least -2**63 and below 2**64, got {request.seed}")
        if request.to == "text" and request.guidance != 1.0:
            raise ValueError(f"guidance {request.guidance} has no meaning for text; it is for image and speech")
        if not math.isfinite(request.guidance):
            raise ValueError(f"guidance must be a number, got {request.guidance}")
        if not 0 <= request.temperature < math.inf:
            raise ValueError(f"temperature must be a number from 0 on, got {request.temperature}")

    def _decode(self, collected: list[list[Part]], targets: list[str]) -> list[list[Segment]]:
        """Latents of all requests ──▶ media, each modality in one go; what the engine decoded is there already."""
        results: list[list[Segment]] = [[] for _ in collected]
        waiting: dict[str, list[tuple[int, int, torch.Tensor]]] = {}
        for number, (parts, to) in enumerate(zip(collected, targets, strict=True)):
            for part in parts or [Part(to)] * (to != "auto"):
                place, name = len(results[number]), part.modality
                if name == "text":
                    results[number].append(Text(self.tokenizers["text"].decode(part.values)))
                    continue
                if part.sounds:
                    results[number].append(Speech(Audio(torch.cat(part.sounds), self.tokenizers[name].sample_rate)))
                    continue
                dim = self.model.modalities[name].latent_dim
                stacked = torch.stack(part.values) if part.values else torch.zeros(0, dim)
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
        """Log-likelihood of the text that counts as target, and the diffusion losses, of one document.

        Raises ValueError for a document that is longer than the context.
        """
        cache = LatentCache({name: t for name, t in self.tokenizers.items() if name != "text"})
        encoded = self.encoder(cache.resolve(document))
        limit = self.model.config.transformer.context_length
        if len(encoded) > limit:
            raise ValueError(f"the document has {len(encoded)} positions, the context is {limit}")
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
            num_latents={name: counts[name] for name in dims if counts[name]},
        )


def feature_streams(model: LatentLM, tokenizers: dict) -> dict[str, Callable[[], FeatureStream]]:
    """What opens the stream of a span of each modality with features. ValueError where a tokenizer is missing."""
    streams = {}
    for name, spec in model.modalities.items():
        if spec.feature_dim is None:
            continue
        second = tokenizers.get(FEATURES[name])
        if second is None or second.latent_dim != spec.feature_dim:
            raise ValueError(
                f"this model takes {spec.feature_dim} features of {name}: it needs their {FEATURES[name]} tokenizer"
            )
        streams[name] = partial(FeatureStream, tokenizers[name], second)
        streams[name]()  # says now what does not fit
    return streams
