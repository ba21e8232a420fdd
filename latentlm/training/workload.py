"""The workload of a run, by kind of recipe: its data and the cost of one of its steps, which `outline.py` prints.

Place in the flow: 5, looked up through the registry of kinds. One micro-batch is made and counted, and the length of a
sample of documents is measured; nothing is trained.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from ..config import ImageTokenizerRecipe, LatentLMRecipe, SourceConfig, SpeechTokenizerRecipe
from ..data.packing import DocumentEncoder, EncodedDocument
from ..model.latentlm import LatentLM
from ..tokenizers.text import TextTokenizer
from ..types import IGNORE, PackedBatch
from .distributed import World
from .feed import media_batches, packed_batches
from .latentlm import LatentLMRun
from .outline import SourceOutline, Workload
from .parallelize import resolve_precision
from .tokenizer import TokenizerRun

NUM_MEASURED = 24
"""Documents of a source whose length is measured, evenly spread; the others are taken to be as long on average."""
MAX_EXAMPLE_TEXT = 60
"""Characters of a text that an example shows."""
KEPT_PER_LINEAR = 4 / 3
"""Elements kept for the backward pass per element of the inputs and outputs of the linear layers; measured: 1.33 in the
Transformer, 1.16 to 1.19 in a diffusion head (docs/log.md)."""

FLOPS_RULE = (
    "6 per trained and 4 per frozen weight of the linear layers, times positions (text head: text targets; heads: "
    "latents × timesteps_per_latent); attention: 12 × layers × row length × width per position"
)
ACTIVATIONS_RULE = (
    "4/3 of the inputs and outputs of all linear layers for one micro-batch, and 12 bytes × text targets × "
    "vocabulary size"
)


def latentlm_workload(recipe: LatentLMRecipe, run: LatentLMRun, world: World) -> Workload:
    """The workload of a language model, from its first micro-batch."""
    encoder = DocumentEncoder(run.tokenizers["text"], run.model.config.lowercase)
    dims = {name: spec.latent_dim for name, spec in run.model.modalities.items()}
    alone = recipe.training.model_copy(update={"global_micro_batches": 1})
    data = recipe.data.model_copy(update={"workers": 0})
    batch = packed_batches(data, run.documents, encoder, dims, alone, World()).next_step()[0]
    num, rows, length = recipe.training.global_micro_batches, recipe.data.rows, recipe.data.sequence_length
    filled = (batch.documents >= 0).float().mean().item()
    element = 2 if resolve_precision(world.device, recipe.training.precision) == "bf16" else 4
    return Workload(
        sources=[
            _source(config, recipe.data.sources, *_tokens(documents, encoder))
            for config, documents in zip(recipe.data.sources, run.documents, strict=True)
        ],
        step=f"{num * rows * length:,} positions ({num} × {rows} rows of {length}), {filled:.0%} filled",
        flops=num * _flops(run.model, batch),
        flops_rule=FLOPS_RULE,
        activations=_kept(run.model, batch, element),
        activations_rule=ACTIVATIONS_RULE,
        tokenizers={
            name: sum(value.numel() for value in tokenizer.parameters())
            for name, tokenizer in run.tokenizers.items()
            if name != "text"
        },
        example=layout(encoder(run.documents[0][0]), run.tokenizers["text"]),
    )


def tokenizer_workload(
    recipe: ImageTokenizerRecipe | SpeechTokenizerRecipe, run: TokenizerRun, world: World
) -> Workload:
    """The workload of a tokenizer, from the forward pass of one example."""
    alone = recipe.training.model_copy(update={"global_micro_batches": 1})
    data = recipe.data.model_copy(update={"batch_size": 1, "workers": 0})
    batch = media_batches(data, run.media, recipe.tokenizer, alone, World()).next_step()[0].to(world.device)
    run.model.to(world.device).eval()  # in train mode the posterior's statistics would change, in all processes
    num, size = recipe.training.global_micro_batches, recipe.data.batch_size
    counter = FlopCounterMode(display=False)
    with torch.random.fork_rng(), counter:
        kept = kept_bytes(run.model, batch)
    items = "pictures" if run.model.modality == "image" else "clips"
    crop = "" if items == "pictures" else f" of {recipe.data.seconds:g} s"
    return Workload(
        items=items,
        sources=[
            _source(config, recipe.data.sources, len(media), None, True)
            for config, media in zip(recipe.data.sources, run.media, strict=True)
        ],
        step=f"{num * size:,} {items}{crop} ({num} × {size})",
        flops=3 * num * size * counter.get_total_flops(),
        flops_rule="3 × the forward pass of one example, times the examples of a step",
        activations=size * kept * (0.5 if resolve_precision(world.device, alone.precision) == "bf16" else 1),
        activations_rule="bytes kept by the forward pass of one example × examples of a micro-batch; half with bf16",
    )


def layout(document: EncodedDocument, tokenizer: TextTokenizer) -> str:
    """A document as the model reads it: <BOS> "red apple" <BOD:image> 4 latents <EOD>; <EOS> is only predicted."""
    special = tokenizer.special
    names = special.names()
    parts: list[str] = []
    position, spans = 0, {span.start: span for span in document.spans}
    while position < len(document):
        token = document.ids[position]
        end = position + 1
        if position in spans:
            end = position + len(spans[position].latents)
            parts.append(f"{end - position} latents")
        elif token in names:
            parts.append(names[token])
        else:
            while end < len(document) and end not in spans and document.ids[end] not in names:
                end += 1
            text = tokenizer.decode(document.ids[position:end])
            shown = text if len(text) <= MAX_EXAMPLE_TEXT else text[: MAX_EXAMPLE_TEXT - 1] + "…"
            parts.append(f'"{shown}" ({end - position} token{"s" * (end - position > 1)})')
        position = end
    return " ".join(parts)


def kept_bytes(model: nn.Module, batch: object) -> int:
    """Bytes that one forward pass of `model` keeps for the backward pass, its own weights not counted."""
    storages: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)  # otherwise another tensor could get its address
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model(batch, torch.Generator(next(model.parameters()).device).manual_seed(0))
    weights = {value.untyped_storage().data_ptr() for value in [*model.parameters(), *model.buffers()]}
    return sum(size for place, size in storages.items() if place not in weights)


def _tokens(documents: Sequence, encoder: DocumentEncoder) -> tuple[int, float, bool]:
    """Number of documents, their positions in all, and whether all were measured."""
    num = len(documents)
    measured = min(num, NUM_MEASURED)
    lengths = [len(encoder(documents[place * num // measured])) for place in range(measured)]
    return num, sum(lengths) / measured * num, measured == num


def _source(
    config: SourceConfig, all_sources: Sequence[SourceConfig], num: int, tokens: float | None, exact: bool
) -> SourceOutline:
    task = "" if config.task == "all" else f" ({config.task})"
    share = config.weight / sum(source.weight for source in all_sources)
    return SourceOutline(f"{config.label}{task}", share, num, tokens, exact)


def _linear(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def _uses(model: LatentLM, batch: PackedBatch) -> list[tuple[nn.Module, int]]:
    """(part of the model, vectors that pass through it) for a micro-batch."""
    used: list[tuple[nn.Module, int]] = [(model.transformer, batch.ids.numel())]
    used.append((model.text_head, int((batch.text_targets != IGNORE).sum())))
    for name, span in batch.latents.items():
        used.append((model.embed_latents[name], len(span.values)))
        used.append((model.heads[name], int(span.target.sum()) * model.heads[name].passes_per_latent))
    return used


def _flops(model: LatentLM, batch: PackedBatch) -> float:
    """FLOPs of one micro-batch by FLOPS_RULE."""
    total = 0.0
    for part, vectors in _uses(model, batch):
        for layer in _linear(part):
            total += vectors * layer.weight.numel() * (6 if layer.weight.requires_grad else 4)
    config = model.config.transformer
    attention = config.num_heads * model.transformer.head_dim
    return total + 12 * config.num_layers * batch.ids.shape[1] * attention * batch.ids.numel()


def _kept(model: LatentLM, batch: PackedBatch, element: int) -> float:
    """Bytes of activations of one micro-batch by ACTIVATIONS_RULE; `element`: bytes of a number."""
    total = 0.0
    for part, vectors in _uses(model, batch):
        if part is model.text_head:
            total += 12 * vectors * part.out_features
        else:
            total += KEPT_PER_LINEAR * element * vectors * sum(x.in_features + x.out_features for x in _linear(part))
    return total
