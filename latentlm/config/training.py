"""What a run trains on and how: sources, loader, optimiser, adapter, loop."""

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
    """One source of documents: an embedded one by name ("digits"), or one by path, and how often it is drawn from.

    A manifest is kept in memory; `path` and `shards` are read from disk as they are needed (docs/data_format.md).
    """

    name: str | None = None
    manifest: str | None = Field(None, description="a small JSONL file, kept in memory with its media")
    path: str | None = Field(None, description="JSONL, Parquet, tar, or a folder of pictures, of any size; URLs too")
    shards: str | None = Field(None, description="a folder that `latentlm encode` wrote")
    columns: dict[str, str] = Field(
        {}, description="of Parquet: which columns hold text and each modality; of tars: which suffixes"
    )
    task: str = Field("all", description="which documents: text_to_image, image_to_text, ... see `latentlm data list`")
    held_out: StrictStr | StrictInt | StrictFloat | None = Field(
        None,
        description="beside a manifest, path or shards: another one, whose documents are never learnt, only scored; "
        "of path and shards also a number of their own documents, or a share below 1",
    )
    weight: float = Field(1.0, gt=0)
    limit: int | None = Field(None, gt=0, description="only the first so many items: a fixed subset")
    augmented_copies: int = Field(0, ge=0, description="slightly turned, shifted and scaled copies of each picture")
    noise: float = Field(
        1.0, ge=0, description="its latents are drawn with so many times the standard deviation of their posterior"
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
            raise UserError(f"held_out goes with a manifest, path or shards; {self.name!r} has its own held-out split")
        if self.manifest is not None and not isinstance(self.held_out, str | None):
            raise UserError(f"held_out of a manifest is another manifest, not {self.held_out!r}; of a path it may be")
        if isinstance(self.held_out, int | float) and not (
            self.held_out >= 1 if isinstance(self.held_out, int) else 0 < self.held_out < 1
        ):
            raise UserError(f"held_out is a path, a number of documents or a share below 1, not {self.held_out!r}")
        if self.columns and self.path is None:
            raise UserError(f"columns goes with path, not with {self.label!r}")
        if self.shards is not None and self.task != "all":
            raise UserError(f"shards {self.shards}: the task was chosen when they were encoded; leave out task")
        if self.augmented_copies and self.is_on_disk:
            raise UserError("augmented_copies keeps all pictures in memory: it goes with name and manifest")
        return self

    @property
    def label(self) -> str:
        """What the source is called in messages."""
        return next(place for place in (self.name, self.manifest, self.path, self.shards) if place is not None)

    @property
    def is_on_disk(self) -> bool:
        """Whether its documents are read from disk as they are needed, none of them kept."""
        return self.path is not None or self.shards is not None


class DataConfig(Config):
    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    sequence_length: Count = Field(256, description="positions in a packed row")
    rows: Count = Field(16, description="rows of a micro-batch")
    condition_dropout: float = Field(0.1, ge=0, le=1)
    workers: NonNegativeInt | None = Field(
        None,
        description="threads that make batches ahead of the step; by default 1 where a source is a path or shards, "
        "else 0",
    )


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Config):
    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    muon_learning_rate: float = Field(0.02, gt=0, description="muon only: for the 2-D weights of the blocks")
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    weight_decay: float = Field(0.1, ge=0)
    warmup_steps: int = Field(100, ge=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final_fraction: float = Field(0.0, ge=0, le=1, description="learning rate at the end, relative to the peak")
    clip: float = Field(1.0, gt=0, description="of the global gradient norm")


class AdapterConfig(Config):
    """LoRA: y = W x + alpha / rank · B A x; W stays as it is, A and B train (Hu et al. 2021; the layers are peft's).

    `targets` and `full` name modules by any part of their dotted names, `*` for anything: "transformer", "attention",
    "heads.speech", "blocks.0.ffn". Targets are the linear layers in there; everything in `full` trains whole.
    """

    kind: Literal["lora"] = "lora"
    rank: int = Field(16, gt=0)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1, description="of the input of A")
    targets: tuple[str, ...] = Field(("transformer",), min_length=1)
    full: tuple[str, ...] | None = Field(
        None,
        description="by default heads, embed_latents and, where there is one, embed_features; () keeps all as it is",
    )


def check_divisible(global_micro_batches: int, processes: int) -> None:
    """UserError unless every process gets equally many of a step's micro-batches."""
    if global_micro_batches % processes:
        raise UserError(
            f"training.global_micro_batches {global_micro_batches} is not a multiple of the {processes} processes"
        )


class TrainingConfig(Config):
    steps: int = Field(1000, gt=0)
    global_micro_batches: int = Field(
        1, gt=0, description="micro-batches a step, over all processes; a multiple of these"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where the hardware has it")
    parallel: Literal["replicate", "shard"] = Field("replicate", description="shard: FSDP2")
    threads: int | None = Field(None, gt=0, description="CPU threads a process; default cores / local processes")
    ema: float = Field(0.999, ge=0, lt=1, description="0 = no average; warmed up as (1 + k) / (10 + k)")
    seed: int = Field(0, ge=0, lt=2**63)
    optimizer: OptimizerConfig = OptimizerConfig()
    loss_weights: dict[str, NonNegativeFloat] = Field(
        default_factory=dict, description="weight of each named loss; 1 where absent (α of the paper: image, speech)"
    )
    log_every: int = Field(10, gt=0)
    save_every: int = Field(500, gt=0)
    sample_every: int | None = Field(None, gt=0, description="write samples every so many steps")
    keep: int = Field(2, gt=0, description="how many checkpoints stay")
    max_minutes: float | None = Field(None, gt=0, description="the schedule follows this clock instead of the steps")
    adapter: AdapterConfig | None = Field(None, description="train this instead of all weights")
    freeze: tuple[str, ...] = Field((), description="weights that stay as they are, named as `adapter.targets`")

    @model_validator(mode="after")
    def _one_choice(self):
        if self.adapter and self.freeze:
            raise UserError("adapter and freeze exclude each other: beside an adapter only adapter.full trains")
        return self
