"""Recipes: of a LatentLM, an image tokenizer, a speech tokenizer; `kinds.py` says what is done with each."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal, Protocol

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from ..errors import UserError
from .base import Config, Count, did_you_mean
from .modalities import modality_names, tokenizer_names
from .model import ModelConfig, TransformerConfig
from .tokenizers import ImageTokenizerConfig, SpeechTokenizerConfig, TextTokenizerConfig
from .training import DataConfig, SourceConfig, TrainingConfig

SPECIAL_OFFSET = -10.0
"""Keeps new special tokens from taking probability of a backbone's text; `interop/hf_llm.py` says how much is left."""


class Recipe(Protocol):
    """What every kind of recipe has: an immutable pydantic model, whose `kind` is a key of `kinds.KINDS`."""

    @property
    def kind(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def training(self) -> TrainingConfig: ...
    def model_dump(self, *, mode: str) -> dict[str, Any]: ...


class RecipeModelConfig(ModelConfig):
    """The model section of a recipe: a new model; one that begins from a language model, which then brings transformer
    and text; or `start`, a trained model, which brings everything."""

    start: str | None = Field(
        None, description="folder, packaged name or hub id; architecture, tokenizers and weights come from it"
    )
    backbone: str | None = Field(None, description="folder of `transformers` or hub id: Llama 3, Qwen2, Qwen3, Mistral")
    transformer: TransformerConfig | None = Field(TransformerConfig(), description="null where a backbone brings it")

    @model_validator(mode="after")
    def _one_transformer(self):
        if self.backbone is None and self.transformer is None:
            raise UserError("a model needs a transformer section or a backbone")
        if self.backbone is not None and self.transformer is not None:
            raise UserError(f"the transformer section comes from backbone {self.backbone!r}, and is given as well")
        return self

    def resolved(self, transformer: TransformerConfig | None = None) -> ModelConfig:
        """What is built and saved: without the name of a backbone, whose `transformer` is given here."""
        fields = {name: getattr(self, name) for name in ModelConfig.model_fields}
        return ModelConfig(**fields | {"transformer": transformer or self.transformer})


class TokenizersConfig(Config):
    """Text is built from the recipe; every modality ("image", "speech") names the folder of a trained tokenizer, of a
    model that has one, or a packaged model ("tiny"). Modalities that need no training ("vectors") may be left out.

    `semantic` names a second tokenizer of speech (`parts: encoder` suffices), at the same rate: its latents are
    features, added to the model's input wherever speech is the answer (PAPER §6).
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, str | None]

    text: TextTokenizerConfig = TextTokenizerConfig()

    @model_validator(mode="before")
    @classmethod
    def _known(cls, fields: Any) -> Any:
        known = ("text", *tokenizer_names())
        for name in fields if isinstance(fields, dict) else ():
            if name not in known:
                of_text = name in TextTokenizerConfig.model_fields
                hint = f", did you mean 'text.{name}'?" if of_text else did_you_mean(name, known)
                raise UserError(f"unknown key {name!r}{hint}")
        return fields

    def folder(self, name: str) -> str | None:
        """What is named for a modality or a second tokenizer; None where nothing is."""
        return self.__pydantic_extra__.get(name)


class LatentLMRecipe(Config):
    kind: Literal["latentlm"] = "latentlm"
    description: str = ""
    tokenizers: TokenizersConfig = TokenizersConfig()
    model: RecipeModelConfig = RecipeModelConfig()
    data: DataConfig
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="before")
    @classmethod
    def _backbone(cls, raw: Any) -> Any:
        """Where a backbone is named, what it brings need not be said."""
        model = raw.get("model") if isinstance(raw, dict) else None
        if not isinstance(model, dict) or model.get("backbone") is None:
            return raw
        model = {"transformer": None, "special_offset": SPECIAL_OFFSET} | model
        tokenizers = raw.get("tokenizers", {})
        if isinstance(tokenizers, dict):
            tokenizers = {"text": {"kind": "backbone"}} | tokenizers
        return raw | {"model": model, "tokenizers": tokenizers}

    @model_validator(mode="after")
    def _one_text_tokenizer(self):
        if self.tokenizers.text.ids is not None:
            raise UserError("tokenizers.text.ids: a recipe numbers no special tokens; a checkpoint keeps their ids")
        if (self.model.backbone is None) == (self.tokenizers.text.kind == "backbone"):
            raise UserError(
                f"tokenizers.text.kind is {self.tokenizers.text.kind!r} and model.backbone {self.model.backbone!r}: "
                "a backbone brings its text tokenizer, and nothing else does"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self):
        check_loss_weights(self.training, ("text", "end", *modality_names()))
        if self.training.adapter and self.model.start is None and self.model.backbone is None:
            raise UserError("training.adapter: needs model.start or model.backbone, a trained model to adapt")
        if self.model.start is not None:
            given = [f"model.{name}" for name in sorted(self.model.model_fields_set - {"start"})]
            given += [f"tokenizers.{name}" for name in sorted(self.tokenizers.model_fields_set)]
            if given:
                raise UserError(f"{given[0]}: model.start {self.model.start!r} brings its own; leave this key out")
        return self

    @model_serializer(mode="wrap")
    def _without_what_start_brings(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A dumped recipe parses again."""
        fields = dump(self)
        if self.model.start is not None:
            fields["model"] = {"start": self.model.start}
            fields["tokenizers"] = {}
        return fields


class ImageReconstructionConfig(Config):
    """Weights of the named reconstruction losses of images."""

    mse: float = Field(1.0, ge=0)
    l1: float = Field(0.0, ge=0)


class SpeechReconstructionConfig(Config):
    """Weights of the named reconstruction losses of speech; multi-resolution STFT as DAC's mel distance."""

    mel: float = Field(1.0, ge=0)
    stft: float = Field(1.0, ge=0)
    waveform: float = Field(0.0, ge=0)


class MediaConfig(Config):
    """Media for a tokenizer: sources as for the model, crops of speech. Augmentation is off by default."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    batch_size: Count = 64
    seconds: float = Field(1.0, gt=0, description="speech only: length of a training crop")
    flip: bool = Field(False, description="pictures only: every second one mirrored, left to right")
    crop: float = Field(
        0.0, ge=0, lt=1, description="pictures only: a square at random, its side 1 - crop to 1 of the shorter side"
    )
    gain: float = Field(0.0, ge=0, description="speech only: louder or quieter by up to so many dB, peaks within 1")
    workers: NonNegativeInt | None = Field(
        None, description="processes that read and decode media; by default 2 where a source is a path, else 0"
    )


def _check_tokenizer_recipe(recipe: ImageTokenizerRecipe | SpeechTokenizerRecipe) -> None:
    """UserError for keys of what the recipes share that mean nothing to a tokenizer."""
    training = recipe.training
    check_loss_weights(training, (*type(recipe.losses).model_fields, "prior"))
    if training.adapter or training.freeze:
        raise UserError(f"training.{'adapter' if training.adapter else 'freeze'} is for language models")
    refused = {
        "noise": "a tokenizer's is tokenizer.posterior",
        "task": "a tokenizer learns from all media of a source",
        "held_out": "a tokenizer's samples are of the media that it learns from",
        "augmented_copies": "a tokenizer learns from the media as they are",
        "shards": "they hold latents, a tokenizer learns from media",
    }
    for name in ("gain",) if recipe.kind == "image_tokenizer" else ("flip", "crop"):
        if getattr(recipe.data, name):
            raise UserError(f"data.{name} does not go with a recipe of kind {recipe.kind}")
    for source in recipe.data.sources:
        for name, why in refused.items():
            if getattr(source, name) != SourceConfig.model_fields[name].default:
                raise UserError(f"data.sources.{name} is for language models; {why}")


class ImageTokenizerRecipe(Config):
    kind: Literal["image_tokenizer"] = "image_tokenizer"
    description: str = ""
    tokenizer: ImageTokenizerConfig
    losses: ImageReconstructionConfig = ImageReconstructionConfig()
    data: MediaConfig
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _consistent(self):
        _check_tokenizer_recipe(self)
        return self


class SpeechTokenizerRecipe(Config):
    kind: Literal["speech_tokenizer"] = "speech_tokenizer"
    description: str = ""
    tokenizer: SpeechTokenizerConfig
    losses: SpeechReconstructionConfig = SpeechReconstructionConfig()
    data: MediaConfig
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _consistent(self):
        _check_tokenizer_recipe(self)
        return self


def check_loss_weights(training: TrainingConfig, losses: Collection[str]) -> None:
    """UserError for the first weight of a loss that there is not."""
    for name in training.loss_weights:
        if name not in losses:
            raise UserError(f"training.loss_weights: no loss {name!r}{did_you_mean(name, sorted(losses))}")
