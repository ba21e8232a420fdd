"""Recipes of a LatentLM, an image tokenizer and a speech tokenizer; `kinds.py` says how each is built and trained."""

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
"""Default of `model.special_offset` on a backbone: keeps new special tokens improbable (see `interop/hf_llm.py`)."""


class Recipe(Protocol):
    """The keys of every kind of recipe, an immutable pydantic model whose `kind` is a key of `kinds.KINDS`."""

    @property
    def kind(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def training(self) -> TrainingConfig: ...
    def model_dump(self, *, mode: str) -> dict[str, Any]: ...


class RecipeModelConfig(ModelConfig):
    """The model section of a recipe: a new model; a new model on a language model (`backbone`), which gives transformer
    and text tokenizer; or a trained model (`start`), which gives architecture, tokenizers and weights."""

    start: str | None = Field(
        None,
        description="a trained model to start from: folder, packaged name or hub id; gives architecture, tokenizers "
        "and weights, so that no other key of model and tokenizers may be set",
    )
    backbone: str | None = Field(
        None,
        description="a language model to start from: folder of transformers or hub id of a Llama 3, Qwen2, Qwen3 or "
        "Mistral; gives transformer and text tokenizer",
    )
    transformer: TransformerConfig | None = Field(
        TransformerConfig(), description="the causal Transformer; null with a backbone"
    )

    @model_validator(mode="after")
    def _one_transformer(self):
        if self.backbone is None and self.transformer is None:
            raise UserError("a model needs a transformer section or a backbone")
        if self.backbone is not None and self.transformer is not None:
            raise UserError(
                f"give transformer or backbone, not both: backbone {self.backbone!r} has its own transformer"
            )
        return self

    def resolved(self, transformer: TransformerConfig | None = None) -> ModelConfig:
        """The config of the model that is built and saved; `transformer` is the backbone's, if there is one."""
        fields = {name: getattr(self, name) for name in ModelConfig.model_fields}
        return ModelConfig(**fields | {"transformer": transformer or self.transformer})


class TokenizersConfig(Config):
    """The tokenizers of a model. `text` is a section; each modality (`image`, `speech`) is the folder of a trained
    tokenizer or of a model that has one, or a packaged model ("tiny"). `vectors`, which needs no training, may be left
    out.

    `semantic` is a second tokenizer of speech at the same rate (`parts: encoder` suffices): its latents are features
    that are added to the model's input where speech is the answer (PAPER §6).
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, str | None]

    text: TextTokenizerConfig = Field(TextTokenizerConfig(), description="the text tokenizer")

    @model_validator(mode="before")
    @classmethod
    def _known(cls, fields: Any) -> Any:
        for name in fields if isinstance(fields, dict) else ():
            if name not in (known := ("text", *tokenizer_names())):
                of_text = name in TextTokenizerConfig.model_fields
                hint = f", did you mean 'text.{name}'?" if of_text else did_you_mean(name, known)
                raise UserError(f"unknown key {name!r}{hint}")
        return fields

    def folder(self, name: str) -> str | None:
        """The folder given for a modality or a second tokenizer; None if none is."""
        return self.__pydantic_extra__.get(name)


class LatentLMRecipe(Config):
    """Recipe of a language model over text and latents."""

    kind: Literal["latentlm"] = Field("latentlm", description="latentlm: a language model over text and latents")
    description: str = Field("", description="one line that describes the recipe")
    tokenizers: TokenizersConfig = Field(TokenizersConfig(), description="the tokenizers of text and each modality")
    model: RecipeModelConfig = Field(RecipeModelConfig(), description="the model, or the model to start from")
    data: DataConfig = Field(description="the documents and how they are packed")
    training: TrainingConfig = Field(TrainingConfig(), description="the training loop")

    @model_validator(mode="before")
    @classmethod
    def _backbone(cls, raw: Any) -> Any:
        """Fill in the keys that follow from `model.backbone`."""
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
            raise UserError("tokenizers.text.ids: is written into checkpoints, a recipe cannot set it")
        if (self.model.backbone is None) == (self.tokenizers.text.kind == "backbone"):
            raise UserError(
                f"tokenizers.text.kind is {self.tokenizers.text.kind!r} and model.backbone {self.model.backbone!r}: "
                "kind must be 'backbone' with a backbone, and something else without"
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
                raise UserError(f"{given[0]}: model.start {self.model.start!r} has its own; leave this key out")
        return self

    @model_serializer(mode="wrap")
    def _without_what_start_brings(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what `model.start` gives, so that a dumped recipe parses again."""
        fields = dump(self)
        if self.model.start is not None:
            fields["model"] = {"start": self.model.start}
            fields["tokenizers"] = {}
        return fields


class ImageReconstructionConfig(Config):
    """Weights of the reconstruction losses of pictures."""

    mse: float = Field(1.0, ge=0, description="weight of the mean squared error of the pixels")
    l1: float = Field(0.0, ge=0, description="weight of the mean absolute error of the pixels")


class SpeechReconstructionConfig(Config):
    """Weights of the reconstruction losses of speech."""

    mel: float = Field(1.0, ge=0, description="weight of the distance of log-mel spectrograms, as DAC's")
    stft: float = Field(
        1.0, ge=0, description="weight of the distance of magnitude spectrograms at several resolutions"
    )
    waveform: float = Field(0.0, ge=0, description="weight of the mean absolute error of the samples")


class MediaConfig(Config):
    """Media of a tokenizer recipe, how they are batched and augmented. Augmentation is off by default."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1, description="where the media come from; at least one")
    batch_size: Count = Field(64, description="pictures or clips per micro-batch")
    seconds: float = Field(1.0, gt=0, description="length of a training crop of speech, in seconds")
    flip: bool = Field(False, description="mirror each picture left to right with probability 1/2")
    crop: float = Field(
        0.0, ge=0, lt=1, description="crop a random square of each picture, its side 1 - crop to 1 of the shorter side"
    )
    gain: float = Field(0.0, ge=0, description="largest random change of a clip's gain, in dB; peaks stay below 1")
    workers: NonNegativeInt | None = Field(
        None, description="processes that read and decode media; default 2 with a path, else 0"
    )


def _check_tokenizer_recipe(recipe: ImageTokenizerRecipe | SpeechTokenizerRecipe) -> None:
    """Raise UserError for shared keys that have no meaning for a tokenizer."""
    training = recipe.training
    check_loss_weights(training, (*type(recipe.losses).model_fields, "prior"))
    if training.adapter or training.freeze:
        raise UserError(f"training.{'adapter' if training.adapter else 'freeze'} is for language models")
    refused = {
        "noise": "the noise of a tokenizer is tokenizer.posterior",
        "task": "a tokenizer learns from all media of a source",
        "augmented_copies": "the augmentation of a tokenizer is data.flip, data.crop and data.gain",
        "shards": "they hold latents, a tokenizer learns from media",
    }
    for name in ("gain",) if recipe.kind == "image_tokenizer" else ("flip", "crop"):
        if getattr(recipe.data, name):
            raise UserError(f"data.{name} is not for recipes of kind {recipe.kind}")
    for source in recipe.data.sources:
        for name, why in refused.items():
            if getattr(source, name) != SourceConfig.model_fields[name].default:
                raise UserError(f"data.sources.{name} is for language models; {why}")


class ImageTokenizerRecipe(Config):
    """Recipe of a tokenizer of pictures."""

    kind: Literal["image_tokenizer"] = Field("image_tokenizer", description="image_tokenizer: a σ-VAE of pictures")
    description: str = Field("", description="one line that describes the recipe")
    tokenizer: ImageTokenizerConfig = Field(description="the tokenizer's network and posterior")
    losses: ImageReconstructionConfig = Field(
        ImageReconstructionConfig(), description="weights of the reconstruction losses"
    )
    data: MediaConfig = Field(description="the media and how they are batched")
    training: TrainingConfig = Field(TrainingConfig(), description="the training loop")

    @model_validator(mode="after")
    def _consistent(self):
        _check_tokenizer_recipe(self)
        return self


class SpeechTokenizerRecipe(Config):
    """Recipe of a tokenizer of speech."""

    kind: Literal["speech_tokenizer"] = Field("speech_tokenizer", description="speech_tokenizer: a σ-VAE of speech")
    description: str = Field("", description="one line that describes the recipe")
    tokenizer: SpeechTokenizerConfig = Field(description="the tokenizer's network and posterior")
    losses: SpeechReconstructionConfig = Field(
        SpeechReconstructionConfig(), description="weights of the reconstruction losses"
    )
    data: MediaConfig = Field(description="the media and how they are batched")
    training: TrainingConfig = Field(TrainingConfig(), description="the training loop")

    @model_validator(mode="after")
    def _consistent(self):
        _check_tokenizer_recipe(self)
        return self


def check_loss_weights(training: TrainingConfig, losses: Collection[str]) -> None:
    """Raise UserError for a weight of an unknown loss."""
    for name in training.loss_weights:
        if name not in losses:
            raise UserError(f"training.loss_weights: no loss {name!r}{did_you_mean(name, sorted(losses))}")
