"""Every packaged recipe parses, builds and says who made its figures; the paper's sizes are the paper's.

Networks are built on the meta device: shapes and parameter counts without memory or numbers.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from math import prod
from pathlib import Path

import pytest
import torch
from torch import nn

from latentlm.checkpoint import build_from_config, resolve
from latentlm.config import (
    ImageTokenizerRecipe,
    LatentLMRecipe,
    Recipe,
    SpeechTokenizerRecipe,
    TrainingConfig,
    load_recipe,
    recipe_names,
)
from latentlm.data.task_source import ALL
from latentlm.model.latentlm import LatentLM, ModalitySpec
from latentlm.tokenizers.base import Tokenizer
from latentlm.tokenizers.image import ImageTokenizer
from latentlm.tokenizers.losses import loss_weights
from latentlm.tokenizers.speech import SpeechTokenizer
from latentlm.tokenizers.text import SpecialTokens, TextTokenizer
from latentlm.training.feed import source_slug

RECIPES = recipe_names()
PAPER = ("latentlm_l_imagenet", "tts_libriheavy", "mllm_1b")
PAPER_TOKENIZERS = ("image_tokenizer_256", "speech_tokenizer_1600", "speech_tokenizer_3200", "speech_tokenizer_6400")


@cache
def network(name: str) -> nn.Module:
    """The network of a packaged recipe."""
    return build(load_recipe(name))


def build(recipe: Recipe) -> nn.Module:
    """The network of a recipe on the meta device."""
    with torch.device("meta"):
        if isinstance(recipe, LatentLMRecipe):
            return build_latentlm(recipe)
        kind = ImageTokenizer if isinstance(recipe, ImageTokenizerRecipe) else SpeechTokenizer
        return kind(recipe.tokenizer, recipe.losses)


def build_latentlm(recipe: LatentLMRecipe) -> LatentLM:
    if recipe.model.start:
        folder = resolve(recipe.model.start)
        return build_from_config(folder, TextTokenizer.load(folder / "tokenizers" / "text"))
    text = recipe.tokenizers.text
    base_size = 256 if text.kind == "bytes" else text.vocab_size
    special = SpecialTokens.after(base_size)
    specs = {}
    for modality in ("image", "speech"):
        if name := recipe.tokenizers.folder(modality):
            tokenizer = network(tokenizer_name(name, modality))
            fixed = tokenizer.num_latents
            specs[modality] = ModalitySpec(tokenizer.latent_dim, fixed)
    return LatentLM(recipe.model, base_size + len(special.names()), special, specs)


def tokenizer_name(name: str, modality: str) -> str:
    """The packaged recipe behind a tokenizer that a recipe names: `runs/<recipe>`, or "tiny"."""
    return f"tiny_{modality}" if name == "tiny" else Path(name).name


def millions(*modules: nn.Module) -> float:
    return sum(value.numel() for module in modules for value in module.parameters()) / 1e6


def per_step(training: TrainingConfig, rows: int) -> int:
    """Rows, or examples, of one optimiser step over all micro-batches."""
    return training.global_micro_batches * rows


@pytest.mark.parametrize("name", RECIPES)
def test_parses_and_builds(name):
    recipe = load_recipe(name)
    assert all(value.is_meta for value in network(name).parameters())
    assert recipe.description
    assert recipe.training.optimizer.warmup_steps < recipe.training.steps


@pytest.mark.parametrize(
    "name", [name for name in RECIPES if not name.startswith("tiny") and name not in ("demo", "finetune")]
)
def test_paper_recipes_say_command_hardware_and_whose_figures(name):
    text = (resources.files("latentlm") / "recipes" / f"{name}.yaml").read_text()
    comment = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert f"latentlm train {name} --out runs/{name}" in comment
    for words in ("Hardware class:", "Expected", "claim, not measured by us", "manifest"):
        assert words in comment.replace("\n# ", " "), words
    recipe = load_recipe(name)
    assert "in memory" not in comment
    assert all(source.is_on_disk and source.task == ALL for source in recipe.data.sources)


@pytest.mark.parametrize("name", [name for name in RECIPES if isinstance(load_recipe(name), LatentLMRecipe)])
def test_language_model_recipes_are_consistent(name):
    recipe = load_recipe(name)
    assert recipe.data.sequence_length <= network(name).config.transformer.context_length
    for modality in ("image", "speech"):
        if tokenizer := recipe.tokenizers.folder(modality):
            assert network(tokenizer_name(tokenizer, modality)).modality == modality
    losses = {"text", "end", "image", "speech"}
    assert set(recipe.training.loss_weights) <= losses
    slugs = [source_slug(source) for source in recipe.data.sources]
    assert len(set(slugs)) == len(slugs), "two sources would share one file of latents"


@pytest.mark.parametrize("name", [name for name in RECIPES if not isinstance(load_recipe(name), LatentLMRecipe)])
def test_tokenizer_recipes_weigh_what_they_compute(name):
    recipe = load_recipe(name)
    weights = loss_weights(recipe)
    assert {"mse", "mel", "stft"} & weights.keys()
    assert weights["prior"] == recipe.tokenizer.posterior.weight
    tokenizer = network(name)
    assert isinstance(tokenizer, Tokenizer)
    if isinstance(recipe, SpeechTokenizerRecipe):
        assert recipe.data.seconds >= tokenizer.hop / tokenizer.sample_rate, "a crop is shorter than a latent"


def test_the_image_model_of_table_1():
    """479 M parameters; our class is text instead of 1,001 rows of a table."""
    recipe, model = load_recipe("latentlm_l_imagenet"), network("latentlm_l_imagenet")
    transformer, training = recipe.model.transformer, recipe.training
    assert (transformer.width, transformer.num_layers, transformer.ffn_width) == (1024, 32, 2730)
    assert recipe.model.head.num_layers == 6
    assert millions(model) == pytest.approx(479, rel=0.01)
    assert millions(model.transformer) == pytest.approx(32 * (4 * 1024**2 + 3 * 1024 * 2730) / 1e6, rel=1e-6)
    assert model.modalities["image"] == ModalitySpec(16, 256)
    assert (training.steps, training.optimizer.learning_rate, training.optimizer.betas) == (250_000, 5e-4, (0.9, 0.98))
    assert (training.optimizer.warmup_steps, training.optimizer.weight_decay) == (100, 0.1)
    # a row holds one document (<BOS>, class, <BOD>, 256 latents, <EOD>) and no second one
    one = 3 + 256 + 60
    assert one <= recipe.data.sequence_length < 2 * (3 + 256 + 1)
    assert per_step(training, recipe.data.rows) == 2048


def test_the_speech_model_of_table_9():
    """403 M in the backbone and about 47 M in the head, as counted from the table with SwiGLU."""
    recipe, model = load_recipe("tts_libriheavy"), network("tts_libriheavy")
    training = recipe.training
    assert recipe.model.head.num_layers == 3
    assert millions(model.transformer) == pytest.approx(24 * (4 * 1024**2 + 3 * 1024 * 4096) / 1e6, rel=1e-6)
    assert millions(model.transformer) == pytest.approx(403, rel=0.005)
    blocks = millions(model.heads["speech"].blocks)
    assert blocks == pytest.approx(47, rel=0.01)
    optimizer = training.optimizer
    assert (training.steps, optimizer.learning_rate, optimizer.betas) == (100_000, 7.5e-4, (0.9, 0.98))
    assert (training.optimizer.warmup_steps, training.optimizer.weight_decay) == (10_000, 0.01)
    assert per_step(training, recipe.data.rows) * recipe.data.sequence_length == pytest.approx(5e6, rel=0.05)
    assert model.modalities["speech"] == ModalitySpec(64, None)


def test_the_multimodal_model_of_table_8():
    """1.309 B parameters without embeddings; a vocabulary of 100,288, special tokens included."""
    recipe, model = load_recipe("mllm_1b"), network("mllm_1b")
    training = recipe.training
    assert recipe.model.head.num_layers == 6
    assert millions(model.transformer) == pytest.approx(1309, rel=0.001)
    assert model.embed_tokens.num_embeddings == 100_288
    assert (training.steps, training.optimizer.learning_rate, training.optimizer.betas) == (50_000, 3e-4, (0.9, 0.98))
    assert (training.optimizer.warmup_steps, training.optimizer.weight_decay) == (500, 0.1)
    assert recipe.data.sequence_length == 4096
    assert per_step(training, recipe.data.rows) * recipe.data.sequence_length == pytest.approx(4e6, rel=0.05)
    assert [source.weight for source in recipe.data.sources] == [2, 1, 1]


def test_the_image_tokenizer_has_172_million_parameters():
    recipe, tokenizer = load_recipe("image_tokenizer_256"), network("image_tokenizer_256")
    training = recipe.training
    assert millions(tokenizer) == pytest.approx(172, rel=0.01)
    assert (tokenizer.grid, tokenizer.latent_dim) == ((16, 16), 16)
    assert (training.optimizer.learning_rate, training.optimizer.betas) == (3e-4, (0.0, 0.99))
    assert training.optimizer.weight_decay == 0.01
    pictures = per_step(training, recipe.data.batch_size)
    assert pictures == 256
    assert training.steps * pictures / 1_281_167 == pytest.approx(200, rel=0.01)  # epochs of ImageNet


@pytest.mark.parametrize(
    ("ratio", "strides", "latent_dim"),
    [(1600, (2, 4, 5, 5, 8), 32), (3200, (4, 4, 5, 5, 8), 64), (6400, (4, 5, 5, 8, 8), 128)],
)
def test_the_speech_tokenizers_of_section_3_3(ratio, strides, latent_dim):
    name = f"speech_tokenizer_{ratio}"
    recipe, tokenizer = load_recipe(name), network(name)
    assert tokenizer.hop == prod(strides) == ratio
    assert recipe.tokenizer.strides == strides
    assert (tokenizer.rate, tokenizer.latent_dim) == (24_000 / ratio, latent_dim)
    assert tokenizer.encoder.stages[-1].blocks[0].gamma.shape == (1024,)
    if ratio == 1600:
        assert millions(tokenizer.encoder) == pytest.approx(120, rel=0.01)


def test_the_recipes_of_the_paper_are_all_here():
    assert set(PAPER + PAPER_TOKENIZERS) <= set(RECIPES)
