"""`latentlm.load`, and the Pipeline it returns: a model with its tokenizers, which generates and scores.

Place in the flow: 4, media ──tokenizers──▶ prompt ──engine──▶ tokens, latents ──tokenizers──▶ media.
A checkpoint directory is self-contained: `config.json`, `model.safetensors`, `ema.safetensors`, `tokenizers/`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..checkpoint import (
    build_from_config,
    check_tokenizers,
    config_folder,
    fill,
    kind_of,
    load_tokenizers,
    read_metadata,
    resolve,
    write_config,
)
from ..config.kinds import lookup
from ..config.modalities import modality
from ..data.cache import LatentCache
from ..data.packing import DocumentEncoder, with_lowercase_conditions
from ..errors import UserError
from ..hardware import choose_device, choose_dtype, set_default_threads, set_threads
from ..model.adapter import apply as apply_adapter
from ..model.latentlm import LatentLM
from ..tokenizers.streaming import FeatureStream
from ..types import Document, GenerationOutput, Text
from ..weights import new_folder, save_weights
from .active_request import ActiveRequest
from .answers import AnswerReader, KeptRun, answer, as_segments, check_finite, contents, streamed_run
from .batch import check_single, say_unread_files, split_prompts
from .engine import Engine
from .model_card import write_card
from .prompts import make_prompt
from .request import Request, check, check_num, check_whole, latent_limit, new_seed, with_defaults
from .scores import Scores, score_document

if TYPE_CHECKING:
    from .answers import Piece
    from .prompts import Clip, Prompt


class Pipeline:
    """A model with its tokenizers. Made by `latentlm.load`."""

    def __init__(self, model: LatentLM, tokenizers: dict, metadata: Mapping[str, Any] | None = None):
        """metadata: how the model was made (recipe, steps); `save` writes it to config.json."""
        self.metadata = dict(metadata or {})
        self.model = model.eval()
        self.tokenizers = tokenizers
        self.encoder = DocumentEncoder(tokenizers["text"], model.config.lowercase)
        self._streams = feature_streams(model, tokenizers)

    def __repr__(self) -> str:
        num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return f"<Pipeline: {', '.join(('text', *self.model.modalities))}; {num_parameters:,} parameters>"

    def save(self, folder: str | Path, *, evaluation: str | Path | None = None) -> Path:
        """Write the model into a new folder that `load` reads, with a model card; returns the folder.

        The folder gets config.json, model.safetensors (in the dtype of this model), tokenizers/ and README.md, the
        card: `latentlm.generation.model_card`. evaluation: a JSON file of `latentlm evaluate`, whose figures go into
        the card. Raises UserError where the folder exists, and for an evaluation that cannot be read.
        """
        with new_folder(Path(folder)) as target:
            write_config(target, self.model, self.tokenizers, self.metadata)
            save_weights(target / "model.safetensors", self.model.state_dict())
            write_card(target, evaluation)
        return Path(folder)

    # ------------------------------------------------------------------ generate

    def prompt(
        self,
        prompt: Prompt,
        to: str,
        voice: Clip | None = None,
        voices: Mapping[int | str, Clip] | None = None,
    ) -> Document:
        """One prompt as the document that a `Request` holds, in the layout that this model was trained on.

        Arguments and errors as in `generate`, but never a batch.
        """
        say_unread_files(prompt)
        return make_prompt(prompt, to, self.model.config.prompt, voice, voices)

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        to: str = "text",
        *,
        guidance: float | None = None,
        steps: int | None = None,
        seed: int | None = 0,
        temperature: float = 0.0,
        voice: Clip | None = None,
        voices: Mapping[int | str, Clip] | None = None,
        max_tokens: int = 256,
        max_latents: int | None = None,
        max_seconds: float | None = None,
        solver: str | None = None,
        num: int = 1,
    ) -> list:
        """`num` answers to each prompt, in a flat list: all of the first prompt, then all of the second, …

        An answer is a string, a PIL image, an Audio or an array (N, C), by `to`; with `to` "auto" it is the list of
        these in the order in which the model made them, empty where the model ends at once.

        prompt: a text, a PIL image, an Audio, a segment, a pathlib.Path (picture, sound or text, by its suffix), a
            Document, a Script, or a list. A list of texts is a batch, as is a list of lists, Documents or Scripts. A
            list with a medium, a path or a segment in it holds the parts of one prompt: [image, "what is it? "].
        to: "text", "image", "speech", "vectors" or "auto".
        guidance: from 0 on; 1 is off. steps: solver steps per latent. solver: one of `diffusion.SOLVERS`. The default
            of all three is the model's own.
        seed: the answers to a prompt have seeds seed, seed + 1, …; equal seeds give equal answers on one device. None
            draws a new seed.
        temperature: for text; 0 always takes the likeliest token.
        voice: a clip of the voice that the speech should have, as an Audio or the path of its file. voices: a clip for
            each speaker of a script.
        max_tokens: limit of text. max_latents: limit of speech and vectors, as in `Request`. max_seconds: limit of
            speech, instead of max_latents.
        Raises UserError for an empty prompt, an unknown target, a target that the model does not have, a wrong option,
        and if the model diverges (`generate_batch` returns that as the finish reason instead).
        """
        check_num(num, to, temperature)
        documents = [self.prompt(each, to, voice, voices) for each in split_prompts(prompt)]
        first = new_seed() if seed is None else seed
        check_whole("seed", first)
        common = {"guidance": guidance, "steps": steps, "temperature": temperature, "solver": solver}
        limits = {"max_tokens": max_tokens, "max_latents": max_latents, "max_seconds": max_seconds}
        outputs = self.generate_batch(
            [Request(document, to, seed=first + k, **common, **limits) for document in documents for k in range(num)]
        )
        for output in outputs:
            check_finite(output.finish_reason)
        return [contents(output) if to == "auto" else answer(output) for output in outputs]

    def generate_batch(self, requests: Sequence[Request]) -> list[GenerationOutput]:
        """The outputs of all requests, generated together; each is what its request would give alone."""
        if not requests:
            return []
        active = self._active_requests(requests)
        engine = Engine.of(self.model, active, self._streams)
        readers = [AnswerReader(KeptRun) for _ in active]
        answers: list[list[KeptRun]] = [[] for _ in active]
        for event in engine.run():
            answers[event.handle] += readers[event.handle].read(event)
        for request, runs in zip(requests, answers, strict=True):
            if not runs and request.to != "auto":  # the model ended at once: an empty answer of that kind
                runs.append(KeptRun(request.to))
        return [
            GenerationOutput(tuple(segments), done.finish_reason, done.num_tokens + done.num_latents)
            for segments, done in zip(as_segments(answers, self.tokenizers), active, strict=True)
        ]

    def stream(self, request: Request) -> Generator[Piece, None, str]:
        """The answer to one request while it is made: pieces of text, chunks of sound or vectors, whole pictures.

        The pieces are strings, Audio, arrays (N, C) and PIL images; they are not kept here. The
        generator returns the finish reason. Closing it early cancels the request.
        """
        (active,) = self._active_requests([request])
        engine = Engine.of(self.model, [active], self._streams)
        reader = AnswerReader(lambda name: streamed_run(name, self.tokenizers, self._streams))
        try:
            for event in engine.run():
                yield from reader.read(event)
        finally:
            engine.cancel(active.handle)
        return active.finish_reason

    def _active_requests(self, requests: Sequence[Request]) -> list[ActiveRequest]:
        """The requests in the form that the engine takes; their media are encoded together."""
        for request in requests:
            if not isinstance(request, Request):
                kind = type(request).__name__
                raise UserError(f"expected a latentlm.Request, such as Request('red apple', to='image'), not {kind}")
        requests = [with_defaults(self._with_document(request), self.model.config.sampling) for request in requests]
        for request in requests:
            check(request, self.model.modalities, self.tokenizers["text"])
        cache = LatentCache({name: t for name, t in self.tokenizers.items() if name != "text"})
        cache.prepare([request.prompt for request in requests])
        return [self._active_request(request, cache.resolve(request.prompt)) for request in requests]

    def _with_document(self, request: Request) -> Request:
        """`request` with a document as its prompt; a prompt that is a Document already is used as it is."""
        if isinstance(request.prompt, Document):
            return request
        check_single(request.prompt)
        return replace(request, prompt=self.prompt(request.prompt, request.to))

    def _active_request(self, request: Request, document: Document) -> ActiveRequest:
        if self.model.config.lowercase and request.to in self.model.modalities:  # the encoder sees no target
            document = with_lowercase_conditions(document)
        prompt = self.encoder(document, closed=False)
        if request.to in self.model.modalities:
            self.encoder.open_span(prompt, request.to)
        values = {name: getattr(request, name) for name in ("to", "guidance", "steps", "solver", "temperature")}
        return ActiveRequest(
            prompt,
            **values,
            max_tokens=request.max_tokens,
            max_latents=latent_limit(request, self.tokenizers, self.model.config.prompt),
            generator=torch.Generator(self.model.embed_tokens.weight.device).manual_seed(operator.index(request.seed)),
        )

    # --------------------------------------------------------------------- score

    def score(self, document: Document | str, seed: int = 0) -> Scores:
        """The negative log-likelihood of a document's text targets, and the losses of its latents.

        A text is scored as a document of that text. seed: of the noise and timesteps of the latents.
        Raises UserError for a document longer than the context, and for an argument of another type.
        """
        if isinstance(document, str):
            document = Document((Text(document),))
        if not isinstance(document, Document):
            kind = type(document).__name__
            raise UserError(f"score takes a text or a latentlm.Document, not {kind}")
        check_whole("seed", seed)
        cache = LatentCache({name: t for name, t in self.tokenizers.items() if name != "text"})
        return score_document(self.model, self.encoder, cache.resolve(document), operator.index(seed))


def feature_streams(model: LatentLM, tokenizers: dict) -> dict[str, Callable[[], FeatureStream]]:
    """For each modality with features, a function that opens the decoding stream of a span.

    Raises UserError if the second tokenizer of a modality is missing or does not fit.
    """
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
        streams[name]()  # raises now, not at the first request, if the two tokenizers do not fit
    return streams


def load(
    name: str | Path,
    *,
    adapter: str | Path | None = None,
    weights: str = "ema",
    device: torch.device | str = "auto",
    dtype: torch.dtype | str = "auto",
    threads: int | None = None,
) -> Pipeline:
    """Load a model: from a checkpoint or run folder, a packaged model by name ("tiny"), or a hub id ("owner/name").

    A name without a slash is the packaged model of that name, if there is one: write "./tiny" for a folder.

    adapter: folder of a LoRA adapter, or of the run that trained it. It is merged into the averaged weights, on which
        it was trained.
    weights: "ema", the average (the raw weights where a checkpoint has no average), or "raw".
    device: "auto" is CUDA where torch sees it, else the CPU.
    dtype: of the model, as a torch.dtype, "fp32" or "bf16"; "auto" is bf16 on a GPU with native bf16, else fp32. The
        tokenizers stay in fp32.
    threads: CPU threads of this process; default: by the free cores and the size of the model, unless torch's threads
        were set before.
    Returns a `Pipeline` for a LatentLM; other kinds of model have their own classes (`config/kinds.py`).
    Raises UserError if something is missing or does not fit.
    """
    device = choose_device(device)
    dtype = dtype if isinstance(dtype, torch.dtype) else choose_dtype(dtype, device)
    folder = resolve(name)
    if weights not in ("ema", "raw"):
        raise UserError(f"weights must be 'ema' or 'raw', got {weights!r}")
    if adapter is not None and weights == "raw":
        raise UserError("weights 'raw' with an adapter: it was trained on the averaged weights; leave weights out")
    spec = kind_of(folder)
    if spec.no_model:
        raise UserError(f"{folder}: {spec.no_model}")
    if threads is not None:
        set_threads(threads)
    return lookup(spec.load)(folder, adapter=adapter, weights=weights, device=device, dtype=dtype)


def load_pipeline(
    folder: Path, *, adapter: str | Path | None, weights: str, device: torch.device, dtype: torch.dtype
) -> Pipeline:
    """The LatentLM in `folder`; arguments and errors as in `load`."""
    tokenizers = load_tokenizers(config_folder(folder) / "tokenizers")
    model = build_from_config(folder, tokenizers["text"])
    check_tokenizers(folder, model, tokenizers)
    fill(model, folder, weights)
    if adapter is not None:
        apply_adapter(model, adapter)
    for tokenizer in tokenizers.values():
        if isinstance(tokenizer, torch.nn.Module):
            tokenizer.to(device)
    if device.type == "cpu":
        set_default_threads(sum(parameter.numel() for parameter in model.parameters()))
    return Pipeline(model.to(device, dtype), tokenizers, read_metadata(folder))
