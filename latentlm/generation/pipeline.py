"""The face of a trained model: load, save, generate, score.

Place in the flow: 4, media ──tokenizers──▶ prompt ──engine──▶ tokens, latents ──tokenizers──▶ media.
A checkpoint directory is self-contained: `config.json`, `model.safetensors`, `ema.safetensors`, `tokenizers/`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..checkpoint import build_from_config, check_tokenizers, fill, kind_of, load_tokenizers, resolve
from ..config.kinds import lookup
from ..config.modalities import modality
from ..data.cache import LatentCache
from ..data.packing import DocumentEncoder, pack
from ..errors import UserError
from ..hardware import choose_device
from ..model.adapter import apply as apply_adapter
from ..model.latentlm import LatentLM
from ..tokenizers.streaming import FeatureStream
from ..types import IGNORE, Document, GenerationOutput, Text
from .answers import AnswerReader, KeptRun, Piece, answer, as_segments, check_finite, streamed_run
from .engine import Engine
from .prompts import make_prompt
from .request import USUAL_LIMIT, Request, check, with_defaults
from .scores import Scores
from .task import Task

if TYPE_CHECKING:
    from .prompts import Clip, Prompt


class Pipeline:
    """A model with its tokenizers. Made by `latentlm.load`."""

    def __init__(self, model: LatentLM, tokenizers: dict):
        self.model = model.eval()
        self.tokenizers = tokenizers
        self.encoder = DocumentEncoder(tokenizers["text"])
        self._streams = feature_streams(model, tokenizers)

    def __repr__(self) -> str:
        num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return f"<Pipeline: {', '.join(('text', *self.model.modalities))}; {num_parameters:,} parameters>"

    # ------------------------------------------------------------------ generate

    def prompt(
        self,
        prompt: Prompt,
        to: str,
        voice: Clip | None = None,
        voices: Mapping[int | str, Clip] | None = None,
    ) -> Document:
        """The document of a `Request`, laid out as this model was trained; arguments and errors as in `generate`."""
        return make_prompt(prompt, to, self.model.config.prompt, voice, voices)

    def generate(
        self,
        prompt: Prompt,
        to: str = "text",
        *,
        guidance: float | None = None,
        steps: int | None = None,
        seed: int = 0,
        temperature: float = 0.0,
        voice: Clip | None = None,
        voices: Mapping[int | str, Clip] | None = None,
        max_tokens: int = 256,
        max_latents: int | None = None,
        solver: str | None = None,
        num: int = 1,
    ) -> list:
        """`num` answers to one prompt: strings, PIL images, Audio or arrays (N, C), by `to`, of seeds seed, seed + 1 …

        prompt: a string, a PIL image, an Audio, a segment, a pathlib.Path (picture, sound or text, by its suffix), a
        list of these in order, a Document, or a Script. voice: a clip of the voice that the speech should have, as an
        Audio or the path of its file; voices: of each speaker of a script. guidance: from 0 on, 1 is off. steps: of the
        solver, a latent; both are the model's own unless given. max_latents: as in `Request`.
        With `to` "auto", each answer is the list of its segments, empty where the model ends at once.
        Raises UserError for an empty prompt, an unknown target, or one that the model was not built for, and where the
        model diverges: `generate_batch` says so in its finish reason.
        """
        if num < 1:
            raise UserError(f"num must be at least 1, got {num}")
        document = self.prompt(prompt, to, voice, voices)
        common = {"guidance": guidance, "steps": steps, "temperature": temperature, "solver": solver}
        limits = {"max_tokens": max_tokens, "max_latents": max_latents}
        requests = [Request(document, to, seed=seed + k, **common, **limits) for k in range(num)]
        outputs = self.generate_batch(requests)
        for output in outputs:
            check_finite(output.finish_reason)
        if to == "auto":
            return [list(output.segments) for output in outputs]
        return [answer(output) for output in outputs]

    def generate_batch(self, requests: Sequence[Request]) -> list[GenerationOutput]:
        """All requests at once; each answer is what the request would get alone."""
        if not requests:
            return []
        tasks = self._tasks(requests)
        engine = Engine.of(self.model, tasks, self._streams)
        readers = [AnswerReader(KeptRun) for _ in tasks]
        answers: list[list[KeptRun]] = [[] for _ in tasks]
        for event in engine.run():
            answers[event.task] += readers[event.task].read(event)
        for request, runs in zip(requests, answers, strict=True):
            if not runs and request.to != "auto":  # what was asked for is there, though the model ended at once
                runs.append(KeptRun(request.to))
        return [
            GenerationOutput(tuple(segments), task.finish_reason, task.num_tokens + task.num_latents)
            for segments, task in zip(as_segments(answers, self.tokenizers), tasks, strict=True)
        ]

    def stream(self, request: Request) -> Generator[Piece, None, str]:
        """Partial results of one request as they come: pieces of text, chunks of sound or of vectors, whole pictures.

        Nothing of a chunk is kept after it was given out. The generator returns the finish reason; one that is
        closed before its end cancels what it was generating.
        """
        (task,) = self._tasks([request])
        engine = Engine.of(self.model, [task], self._streams)
        reader = AnswerReader(lambda name: streamed_run(name, self.tokenizers, self._streams))
        try:
            for event in engine.run():
                yield from reader.read(event)
        finally:
            engine.cancel(task.handle)
        return task.finish_reason

    def _tasks(self, requests: Sequence[Request]) -> list[Task]:
        """Requests as the engine wants them; their media are encoded together."""
        requests = [with_defaults(self._laid_out(request), self.model.config.sampling) for request in requests]
        for request in requests:
            check(request, self.model.modalities, self.tokenizers["text"])
        cache = LatentCache({name: t for name, t in self.tokenizers.items() if name != "text"})
        cache.prepare([request.prompt for request in requests])
        return [self._task(request, cache.resolve(request.prompt)) for request in requests]

    def _laid_out(self, request: Request) -> Request:
        """`request` with a document as its prompt; one that is a document stays exactly that."""
        if isinstance(request.prompt, Document):
            return request
        return replace(request, prompt=self.prompt(request.prompt, request.to))

    def _task(self, request: Request, document: Document) -> Task:
        prompt = self.encoder(document, closed=False)
        if request.to in self.model.modalities:
            self.encoder.open_span(prompt, request.to)
        values = {name: getattr(request, name) for name in ("to", "guidance", "steps", "solver", "temperature")}
        usual = None if self.model.config.prompt == "script" else USUAL_LIMIT
        return Task(
            prompt,
            **values,
            max_tokens=request.max_tokens,
            max_latents=request.max_latents or usual,
            generator=torch.Generator(self.model.embed_tokens.weight.device).manual_seed(request.seed),
        )

    # --------------------------------------------------------------------- score

    @torch.inference_mode()
    def score(self, document: Document | str, seed: int = 0) -> Scores:
        """Log-likelihood of the text that counts as target, and the diffusion losses, of one document or text.

        Raises UserError for a document that is longer than the context, and for what is neither.
        """
        if isinstance(document, str):
            document = Document((Text(document),))
        if not isinstance(document, Document):
            kind = type(document).__name__
            raise UserError(f"score takes a text or a latentlm.Document, which says what is a target, not {kind}")
        cache = LatentCache({name: t for name, t in self.tokenizers.items() if name != "text"})
        encoded = self.encoder(cache.resolve(document))
        limit = self.model.config.transformer.context_length
        if len(encoded) > limit:
            raise UserError(f"the document has {len(encoded)} positions, the context is {limit}")
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
    """What opens the stream of a span of each modality with features. UserError where a tokenizer is missing."""
    streams = {}
    for name, spec in model.modalities.items():
        if spec.feature_dim is None:
            continue
        second = tokenizers.get(modality(name).second)
        if second is None or second.latent_dim != spec.feature_dim:
            needed = modality(name).second
            raise UserError(
                f"this model takes {spec.feature_dim} features of {name}: it needs their {needed} tokenizer"
            )
        streams[name] = partial(FeatureStream, tokenizers[name], second)
        streams[name]()  # says now what does not fit
    return streams


def load(
    name: str | Path,
    *,
    adapter: str | Path | None = None,
    weights: str = "ema",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Pipeline:
    """The model in a checkpoint directory, a packaged one by name ("tiny"), or a hub id ("owner/name").

    weights: "ema" (the average, or the raw weights where a checkpoint has none) or "raw". adapter: folder of a LoRA
    adapter (or the run that trained it), which is merged into the "ema" weights, those that it was trained on.
    device: "auto" is CUDA where torch sees it. dtype: of the model; the tokenizers stay as they are.
    What is loaded, and how, is the affair of the folder's kind: a `Pipeline` where it is LatentLM.
    Raises UserError, one line, naming what is missing or does not fit.
    """
    device = choose_device(device)
    folder = resolve(name)
    if weights not in ("ema", "raw"):
        raise UserError(f"weights must be 'ema' or 'raw', got {weights!r}")
    if adapter is not None and weights == "raw":
        raise UserError("weights 'raw' with an adapter: it was trained on the averaged weights; leave weights out")
    spec = kind_of(folder)
    if spec.no_model:
        raise UserError(f"{folder}: {spec.no_model}")
    return lookup(spec.load)(folder, adapter=adapter, weights=weights, device=device, dtype=dtype)


def load_pipeline(
    folder: Path, *, adapter: str | Path | None, weights: str, device: torch.device, dtype: torch.dtype
) -> Pipeline:
    """The LatentLM in `folder`; arguments and errors as in `load`."""
    tokenizers = load_tokenizers(folder / "tokenizers")
    model = build_from_config(folder, tokenizers["text"])
    check_tokenizers(folder, model, tokenizers)
    fill(model, folder, weights)
    if adapter is not None:
        apply_adapter(model, adapter)
    for tokenizer in tokenizers.values():
        if isinstance(tokenizer, torch.nn.Module):
            tokenizer.to(device)
    return Pipeline(model.to(device, dtype), tokenizers)
