"""Configuration: pydantic models; a recipe is one of them written as YAML (see `latentlm/recipes/`).

`load_recipe(name_or_path, overrides)` is the only way in: unknown keys get "did you mean", wrong types name the key.
    tokenizers, model, training ──▶ recipes ──▶ reading
"""

from .base import FORMAT_VERSION, Config, RecipeError
from .model import (
    DiffusionConfig,
    DiffusionHeadConfig,
    HeadConfig,
    MixtureHeadConfig,
    ModelConfig,
    RopeScalingConfig,
    SamplingConfig,
    Solver,
    TransformerConfig,
)
from .reading import describe, load_recipe, parse_recipe, read_json, recipe_names
from .recipes import (
    SPECIAL_OFFSET,
    ImageReconstructionConfig,
    ImageTokenizerRecipe,
    LatentLMRecipe,
    MediaConfig,
    Recipe,
    RecipeModelConfig,
    SpeechReconstructionConfig,
    SpeechTokenizerRecipe,
    TokenizersConfig,
)
from .tokenizers import (
    ConvImageTokenizerConfig,
    ImageTokenizerConfig,
    PosteriorConfig,
    SpeechTokenizerConfig,
    TextTokenizerConfig,
)
from .training import AdapterConfig, DataConfig, OptimizerConfig, SourceConfig, TrainingConfig, check_divisible

__all__ = [
    "FORMAT_VERSION",
    "SPECIAL_OFFSET",
    "AdapterConfig",
    "Config",
    "ConvImageTokenizerConfig",
    "DataConfig",
    "DiffusionConfig",
    "DiffusionHeadConfig",
    "HeadConfig",
    "ImageReconstructionConfig",
    "ImageTokenizerConfig",
    "ImageTokenizerRecipe",
    "LatentLMRecipe",
    "MediaConfig",
    "MixtureHeadConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PosteriorConfig",
    "Recipe",
    "RecipeError",
    "RecipeModelConfig",
    "RopeScalingConfig",
    "SamplingConfig",
    "Solver",
    "SourceConfig",
    "SpeechReconstructionConfig",
    "SpeechTokenizerConfig",
    "SpeechTokenizerRecipe",
    "TextTokenizerConfig",
    "TokenizersConfig",
    "TrainingConfig",
    "TransformerConfig",
    "check_divisible",
    "describe",
    "load_recipe",
    "parse_recipe",
    "read_json",
    "recipe_names",
]
