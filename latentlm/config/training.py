"""Configuration of training: data sources, batches, optimiser, adapter, training loop."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    StrictFloat,
    StrictInt,
    StrictStr,
    field_validator,
    model_validator,
)

from ..errors import UserError
from .base import Config, Count, did_you_mean
from .modalities import modality_names


class SourceConfig(Config):
    """One source of documents: name, manifest, path or shards, exactly one of them (docs/data_format.md)."""

    name: str | None = Field(None, description="an embedded source, as digits; `latentlm data list` shows them")
    manifest: str | None = Field(None, description="a JSONL file, kept in memory with its media")
    path: str | None = Field(
        None, description="JSONL, Parquet, tar or a folder of pictures of any size, read from disk; URLs too"
    )
    shards: str | None = Field(None, description="a folder written by `latentlm encode`, read from disk")
    columns: dict[str, str] = Field(
        {}, description="columns of a Parquet file, or suffixes in a tar, that hold text and each modality"
    )
    task: str = Field("all", description="the kind of documents: text_to_image, image_to_text, …")
    held_out: StrictStr | StrictInt | StrictFloat | None = Field(
        None,
        description="documents to score and never train on: another manifest, path or folder of shards; with path or "
        "shards also a number of documents, or a share below 1. Embedded sources have their own held-out split",
    )
    weight: float = Field(
        1.0, gt=0, description="how often documents are drawn from this source, relative to the others"
    )
    limit: int | None = Field(None, gt=0, description="number of items to use, from the first one; null: all")
    augmented_copies: int = Field(
        0, ge=0, description="number of slightly rotated, shifted and scaled copies of each picture to add"
    )
    noise: float = Field(
        1.0, ge=0, description="factor of the posterior's standard deviation when latents of this source are drawn"
    )

    @field_validator("columns")
    @classmethod
    def _known(cls, columns: dict[str, str]) -> dict[str, str]:
        known = ("text", *modality_names())
        for name in columns:
            if name not in known:
                raise UserError(f"no column {name!r}{did_you_mean(name, known)}")
        return columns

    @model_validator(mode="after")
    def _one(self):
        if sum(place is not None for place in (self.name, self.manifest, self.path, self.shards)) != 1:
            raise UserError("give one of name (an embedded source), manifest (a JSONL path), path or shards")
        if self.held_out is not None and self.name is not None:
            raise UserError(f"held_out is for a manifest, path or shards; {self.name!r} has its own held-out split")
        if self.manifest is not None and not isinstance(self.held_out, str | None):
            raise UserError(
                f"held_out of a manifest must be another manifest, not {self.held_out!r}; with path it may be a number"
            )
        if isinstance(self.held_out, int | float) and not (
            self.held_out >= 1 if isinstance(self.held_out, int) else 0 < self.held_out < 1
        ):
            raise UserError(f"held_out is a path, a number of documents or a share below 1, not {self.held_out!r}")
        if self.columns and self.path is None:
            raise UserError(f"columns is only for path, not for {self.label!r}")
        if self.shards is not None and self.task != "all":
            raise UserError(f"shards {self.shards}: the task was chosen when they were encoded; leave out task")
        if self.augmented_copies and self.is_on_disk:
            raise UserError("augmented_copies keeps all pictures in memory: it is only for name and manifest")
        return self

    @property
    def label(self) -> str:
        """The name of the source in messages."""
        return next(place for place in (self.name, self.manifest, self.path, self.shards) if place is not None)

    @property
    def is_on_disk(self) -> bool:
        """Whether documents are read from disk when needed, rather than kept in memory."""
        return self.path is not None or self.shards is not None


class DataConfig(Config):
    """Documents of a language model and how they are packed into batches."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1, description="where the documents come from; at least one")
    sequence_length: Count = Field(256, description="positions per packed row; also the most positions of a document")
    rows: Count = Field(16, description="rows per micro-batch")
    condition_dropout: float = Field(
        0.1, ge=0, le=1, description="probability that a document loses its condition, which guidance needs"
    )
    workers: NonNegativeInt | None = Field(
        None, description="threads that prepare batches in advance; default 1 with a path or shards, else 0"
    )


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Config):
    """The optimiser and its learning-rate schedule."""

    kind: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: Muon for the 2-D weights of the blocks, AdamW for all others"
    )
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of AdamW")
    muon_learning_rate: float = Field(0.02, gt=0, description="peak learning rate of Muon")
    betas: tuple[Beta, Beta] = Field((0.9, 0.98), description="β1 and β2 of AdamW")
    weight_decay: float = Field(0.1, ge=0, description="weight decay; norms, biases and embeddings have none")
    warmup_steps: int = Field(100, ge=0, description="steps of linear warm-up of the learning rate")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="decay of the learning rate after the warm-up"
    )
    final_fraction: float = Field(0.0, ge=0, le=1, description="learning rate at the end, relative to the peak")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient; longer gradients are scaled down to it")


class AdapterConfig(Config):
    """LoRA: y = W x + alpha / rank · B A x, where A and B train and W is frozen (Hu et al. 2021; peft's layers).

    `targets` and `full` name modules by a part of their dotted names, with `*` for anything: "transformer",
    "attention", "heads.speech", "blocks.0.ffn".
    """

    kind: Literal["lora"] = Field("lora", description="lora: low-rank matrices beside linear layers")
    rank: int = Field(16, gt=0, description="rank of the matrices")
    alpha: float = Field(32.0, gt=0, description="the adapter's output is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout probability on the input of A")
    targets: tuple[str, ...] = Field(
        ("transformer",), min_length=1, description="modules whose linear layers get an adapter"
    )
    full: tuple[str, ...] | None = Field(
        None,
        description="modules that train in full beside the adapter; default heads, embed_latents and, if the model has "
        "it, embed_features; []: none",
    )


def check_divisible(global_micro_batches: int, processes: int) -> None:
    """Raise UserError unless the micro-batches of a step can be shared equally between the processes."""
    if global_micro_batches % processes:
        raise UserError(
            f"training.global_micro_batches {global_micro_batches} is not a multiple of the {processes} processes"
        )


class TrainingConfig(Config):
    """The training loop: its length, precision, optimiser, logging and checkpoints."""

    steps: int = Field(1000, gt=0, description="number of optimiser steps")
    global_micro_batches: int = Field(
        1, gt=0, description="micro-batches per step over all processes; a multiple of the number of processes"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="precision of the computation; auto: bf16 if the hardware multiplies it, else fp32"
    )
    parallel: Literal["replicate", "shard"] = Field(
        "replicate", description="replicate: every process holds all weights; shard: weights are sharded (FSDP2)"
    )
    threads: int | None = Field(
        None, gt=0, description="CPU threads per process; default: all cores, divided by the processes"
    )
    ema: float = Field(
        0.999, ge=0, lt=1, description="decay of the exponential moving average of the weights; 0: no average"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the weights, the order of the data and the noise")
    optimizer: OptimizerConfig = Field(OptimizerConfig(), description="the optimiser and its schedule")
    loss_weights: dict[str, NonNegativeFloat] = Field(
        default_factory=dict,
        description="weight by name of the loss (text, end, image, speech; mse, mel, …); default 1",
    )
    log_every: int = Field(10, gt=0, description="steps between two records in train.jsonl")
    save_every: int = Field(500, gt=0, description="steps between two checkpoints")
    sample_every: int | None = Field(
        None, gt=0, description="steps between two rounds of samples and held-out losses; null: none"
    )
    keep: int = Field(2, gt=0, description="number of checkpoints that are kept")
    max_minutes: float | None = Field(
        None, gt=0, description="time limit in minutes; the schedule ends here or after steps, whichever comes first"
    )
    adapter: AdapterConfig | None = Field(
        None, description="train an adapter instead of all weights; null: all weights"
    )
    freeze: tuple[str, ...] = Field(
        (), description="weights that do not train, named by a part of their dotted names, as in adapter.targets"
    )

    @model_validator(mode="after")
    def _one_choice(self):
        if self.adapter and self.freeze:
            raise UserError("adapter and freeze exclude each other: beside an adapter only adapter.full trains")
        return self
