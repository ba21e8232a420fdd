"""A small LatentLM-like model and a deterministic loader; run as a script it trains, alone or under torchrun.

    tiny_run.py FOLDER [key=value ...] [slow=SECONDS a step] [poison=CALL] [full=RANK] [signal=1] [real=1 [adapter=1]]
        [-- FOLDER ...]

`signal`: rank 0 alone gets a SIGTERM whenever it samples. `real` takes the LatentLM and its loader, `adapter` puts a
LoRA adapter into it. Several runs, parted by `--`, follow each other in the same processes.
An expected error goes to FOLDER.<rank>.error.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed.checkpoint.filesystem as filesystem
import torch.nn.functional as F
from torch import Tensor, nn

from latentlm.config import (
    AdapterConfig,
    DataConfig,
    DiffusionHeadConfig,
    ModelConfig,
    SourceConfig,
    TrainingConfig,
    TransformerConfig,
)
from latentlm.data.loader import DocumentLoader
from latentlm.data.packing import DocumentEncoder
from latentlm.modalities.image import Image
from latentlm.modalities.speech import Speech
from latentlm.model import adapter
from latentlm.model.latentlm import LatentLM, ModalitySpec
from latentlm.tokenizers.text import TextTokenizer
from latentlm.training.checkpoint import CheckpointError
from latentlm.training.distributed import World, finish, start
from latentlm.training.logs import read_log
from latentlm.training.objective import Run, plain
from latentlm.training.trainer import NonFiniteLoss, Trainer
from latentlm.types import IGNORE, Document, Latents, LatentSpans, PackedBatch, Text

WIDTH, VOCAB, CHANNELS, ROWS, POSITIONS = 16, 23, 4, 3, 12


class Block(nn.Module):
    def __init__(self, dropout: float):
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        return x + F.dropout(self.down(F.silu(self.up(self.norm(x)))), self.dropout, self.training)


class Stack(nn.Module):
    def __init__(self, num_blocks: int, dropout: float):
        super().__init__()
        self.blocks = nn.ModuleList(Block(dropout) for _ in range(num_blocks))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Head(Stack):
    def __init__(self):
        super().__init__(1, 0.0)
        self.out = nn.Linear(WIDTH, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(super().forward(x))


class TinyModel(nn.Module):
    """Losses text, image, speech as sums; a head runs only where its modality has latents."""

    def __init__(self, dropout: float = 0.1, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(VOCAB, WIDTH)
            self.transformer = Stack(2, dropout)
            self.lm_head = nn.Linear(WIDTH, VOCAB, bias=False)
            self.lm_head.weight = self.embedding.weight
            self.heads = nn.ModuleDict({"image": Head(), "speech": Head()})
        self.register_buffer("scale", torch.tensor(float("nan")))

    def forward(self, batch: PackedBatch, generator: torch.Generator) -> dict[str, Tensor]:
        hidden = self.transformer(self.embedding(batch.ids))  # (B, T, D)
        logits = self.lm_head(hidden).float().flatten(0, 1)
        targets = batch.text_targets.flatten()
        losses = {"text": F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")}
        flat = hidden.flatten(0, 1)
        for name, span in batch.latents.items():
            noise = torch.randn(span.values.shape, generator=generator, device=flat.device)
            predicted = self.heads[name](flat[span.index - 1])
            losses[name] = (predicted.float() - span.values - 0.1 * noise).square().mean(-1)[span.target].sum()
        return losses


def make_batch(lane: int, position: int, rows: int = ROWS) -> PackedBatch:
    g = torch.Generator().manual_seed(1000 * lane + position)
    ids = torch.randint(VOCAB, (rows, POSITIONS), generator=g)
    targets = ids.roll(-1, 1)
    targets[torch.rand(ids.shape, generator=g) < 0.3 * (1 + lane % 2)] = IGNORE
    latents = {}
    for offset, name in enumerate(("image", "speech")):
        count = 2 + (position + lane) % 3
        if (lane + offset) % 2 == 0 or position % 3 == 0:
            index = torch.randint(1, rows * POSITIONS, (count,), generator=g)
            values = torch.randn(count, CHANNELS, generator=g)
            latents[name] = LatentSpans(values, values, index, torch.ones(count, dtype=torch.bool))
    shape, nowhere = torch.zeros_like(ids), torch.full_like(ids, -1)
    no_ends = torch.full_like(ids, IGNORE)
    return PackedBatch(ids, shape, shape, nowhere, targets, no_ends, latents, 7919 * lane + position)


class TinyLoader:
    def __init__(self, num_lanes: int, world: World | None = None):
        world = world or World()
        self.num_lanes = num_lanes
        self.positions = dict.fromkeys(range(world.rank, num_lanes, world.size), 0)

    def next_step(self) -> list[PackedBatch]:
        batches = [make_batch(lane, position) for lane, position in self.positions.items()]
        self.positions = {lane: position + 1 for lane, position in self.positions.items()}
        return batches

    def state_dict(self) -> dict:
        return {"lanes": {str(lane): position for lane, position in self.positions.items()}}

    def load_state_dict(self, state: dict) -> None:
        self.positions = {lane: state["lanes"][str(lane)] for lane in self.positions}


def tiny_config(**values) -> TrainingConfig:
    defaults = {
        "steps": 8,
        "global_micro_batches": 2,
        "precision": "fp32",
        "threads": 1,
        "ema": 0.9,
        "log_every": 1,
        "save_every": 4,
        "loss_weights": {"image": 2.0},
        "optimizer": {"learning_rate": 0.01, "warmup_steps": 3},
    }
    for key, value in values.items():
        if isinstance(value, dict):
            defaults[key] = {**defaults.get(key, {}), **value}
        else:
            defaults[key] = value
    return TrainingConfig.model_validate(defaults)


CLOCK = ("seconds", "tokens_per_second", "examples_per_second")


def trainer(folder, model=None, loader=None, **values):
    options = {
        name: values.pop(name) for name in ("identity", "write", "on_start", "on_export", "on_sample") if name in values
    }
    weights, model = values.pop("loss_weights", None), model or TinyModel()
    config = tiny_config(**values)
    run = Run(model=model, objective=plain(model, config.optimizer, weights), **options)
    return Trainer(run, loader or TinyLoader(config.global_micro_batches), config, folder)


def without_clock(path):
    return [{key: value for key, value in record.items() if key not in CLOCK} for record in read_log(path)]


class Poisoned(TinyModel):
    """The text loss of one call of forward is NaN."""

    def __init__(self, call: int):
        super().__init__()
        self.calls, self.call = 0, call

    def forward(self, batch, generator):
        losses = super().forward(batch, generator)
        self.calls += 1
        return losses | {"text": losses["text"] * float("nan")} if self.calls == self.call else losses


def real_model() -> LatentLM:
    """A LatentLM over text, images of 4 latents and speech of any length."""
    config = ModelConfig(
        transformer=TransformerConfig(width=32, num_layers=2, num_heads=4), head=DiffusionHeadConfig(num_layers=1)
    )
    text = TextTokenizer()
    torch.manual_seed(3)
    modalities = {"image": ModalitySpec(4, 4), "speech": ModalitySpec(5, None)}
    return LatentLM(config, text.vocab_size, text.special, modalities)


def adapted_model() -> LatentLM:
    """The same with an adapter whose dropout draws random numbers."""
    model = real_model()
    adapter.insert(model, AdapterConfig(rank=2, dropout=0.1), "real")
    return model


def real_loader(num_lanes: int, world: World | None = None) -> DocumentLoader:
    """Few rows of one document each: most micro-batches lack a modality; by this seed, so do two of the first steps."""
    world = world or World()
    g = torch.Generator().manual_seed(0)
    images, speech = (
        [
            Document((Text(f"{kind.__name__} {i}", condition=True, loss=False), kind(latents(g, num(i), channels))))
            for i in range(9)
        ]
        for kind, num, channels in ((Image, lambda i: 4, 4), (Speech, lambda i: 3 + i, 5))
    )
    config = DataConfig(sources=(SourceConfig(name="images"), SourceConfig(name="speech")), sequence_length=28, rows=1)
    return DocumentLoader(
        [images, speech],
        config,
        DocumentEncoder(TextTokenizer()),
        {"image": 4, "speech": 5},
        seed=10,
        num_lanes=num_lanes,
        rank=world.rank,
        world=world.size,
    )


def latents(generator: torch.Generator, num: int, channels: int) -> Latents:
    return Latents(torch.randn(num, channels, generator=generator), torch.tensor(0.5), "sigma")


def parse(settings: list[str]) -> dict:
    values: dict = {}
    for setting in settings:
        key, value = setting.split("=")
        target = values
        *parents, last = key.split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    return values


def run(world: World, folder: str, *settings: str) -> None:
    values = parse(list(settings))
    slow, poison, full, signalled = (values.pop(name, None) for name in ("slow", "poison", "full", "signal"))
    real, adapted = (values.pop(name, None) for name in ("real", "adapter"))
    config = tiny_config(**values)
    model = Poisoned(int(poison)) if poison and world.rank == world.size - 1 else TinyModel()
    loader = TinyLoader(config.global_micro_batches, world)
    if real:
        model = adapted_model() if adapted else real_model()
        loader = real_loader(config.global_micro_batches, world)
    if slow:
        take = loader.next_step
        loader.next_step = lambda: time.sleep(float(slow)) or take()
    interrupt = (lambda model, step: signal.raise_signal(signal.SIGTERM)) if signalled else None
    fsync = filesystem.os.fsync
    if full and world.rank == int(full):
        filesystem.os.fsync = lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    try:
        Trainer(Run(model=model, on_sample=interrupt), loader, config, Path(folder), world=world).fit()
    except (ValueError, NonFiniteLoss, CheckpointError) as error:
        Path(f"{folder}.{world.rank}.error").write_text(f"{type(error).__name__}: {error}")
    finally:
        filesystem.os.fsync = fsync


def main(argv: list[str]) -> None:
    world = start("cpu")
    while argv:
        end = argv.index("--") if "--" in argv else len(argv)
        run(world, *argv[:end])
        argv = argv[end + 1 :]
    finish(world)


if __name__ == "__main__":
    main(sys.argv[1:])
