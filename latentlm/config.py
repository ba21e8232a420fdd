"""Configuration: pydantic models; a recipe is one of them written as YAML (see `latentlm/recipes/`).

`load_recipe(name_or_path, overrides)` is the only way in: unknown keys get "did you mean", wrong types name the key.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)

FORMAT_VERSION = 1
"""Version of the checkpoint directory's layout; a directory of another version is refused."""


class RecipeError(ValueError):
    """A recipe that cannot be used. The message is one line and names the file and the key."""


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


# ---------------------------------------------------------------- tokenizers


class PosteriorConfig(Config):
    """sigma: z = μ + σ·ε with one σ ~ N(0, C_σ²) per example (σ-VAE, PAPER §1.7); learned: plain VAE; none: AE.

    `c_sigma` is a standard deviation relative to std(μ). `weight` is β: of ‖μ‖² for sigma and none, of KL for learned.
    """

    kind: Literal["sigma", "learned", "none"] = "sigma"
    c_sigma: float = Field(0.5, ge=0)
    weight: float = Field(1e-3, ge=0)


class ImageTokenizerConfig(Config):
    """ViT encoder and decoder (PAPER §2.1). A latent a patch: grid = image_size / patch_size, squared."""

    kind: Literal["image"] = "image"
    image_size: int = 32
    patch_size: int = 8
    latent_dim: int = 32
    width: int = 192
    encoder_layers: int = 3
    decoder_layers: int = 3
    num_heads: int = 4
    class_token: bool = Field(False, description="one token more beside the patches, as the authors' networks")
    encoder_sub_norm: bool = Field(False, description="norms inside attention and feed-forward too, eps 1e-5: BEiT-3")
    per_channel: bool = Field(False, description="normalise each latent channel by itself instead of one scalar")
    posterior: PosteriorConfig = PosteriorConfig()

    @model_validator(mode="after")
    def _divides(self):
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        return self


class ConvImageTokenizerConfig(Config):
    """The convolutional autoencoder of latent diffusion: a latent a cell of 2^(stages - 1) pixels squared."""

    kind: Literal["conv_image"] = "conv_image"
    image_size: int = 256
    latent_dim: int = 16
    channels: tuple[int, ...] = Field((128, 128, 256, 256, 512), description="of each stage; halved between two")
    num_blocks: int = Field(2, gt=0, description="residual blocks of an encoder's stage; a decoder's has one more")
    norm_groups: int = Field(32, gt=0, description="of the group norms")
    deepest_attention: bool = Field(False, description="attention after every block of the encoder's last stage: KL-16")
    latent_conv: bool = Field(False, description="1×1 convolutions around the latents (diffusers: the quant convs)")
    per_channel: bool = False
    posterior: PosteriorConfig = PosteriorConfig(kind="learned", weight=1e-6)

    @model_validator(mode="after")
    def _divides(self):
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of {self.patch_size}, the stages' cell")
        for width in self.channels:
            if width % self.norm_groups:
                raise ValueError(f"channels {width} is not a multiple of norm_groups {self.norm_groups}")
        return self

    @property
    def patch_size(self) -> int:
        """Side of the pixels of one latent."""
        return 2 ** (len(self.channels) - 1)


class SpeechTokenizerConfig(Config):
    """Causal ConvNeXt stages (PAPER §4.1). hop = frame_hop · Π strides samples a latent.

    `front` "waveform": strided convolutions on the raw samples, as the paper; "spectral": an STFT of hop `frame_hop`
    in front and an inverse STFT behind, which learns fastest on a small budget (then strides act on frames).
    `parts` "encoder": features of speech that cannot be decoded (VibeVoice's semantic tokenizer, PAPER §6); "decoder":
    latents of others made audible (what VibeVoice-Realtime was released with).
    """

    kind: Literal["speech"] = "speech"
    parts: Literal["both", "encoder", "decoder"] = "both"
    sample_rate: int = 24000
    front: Literal["waveform", "spectral"] = "waveform"
    frame_hop: int = Field(1, description="spectral front only: STFT hop in samples; 1 for waveform")
    frame_window: int = Field(1, description="spectral front only: STFT window in samples")
    strides: tuple[int, ...] = (2, 4, 5, 5, 8)
    channels: int = Field(32, description="of the first stage; doubled at each downsampling up to max_channels")
    max_channels: int = 1024
    depths: tuple[int, ...] = (3, 3, 3, 3, 3, 12)
    kernel_size: int = 7
    latent_dim: int = 32
    per_channel: bool = False
    loudness: float | None = Field(None, description="dB FS that clips are brought to before encoding; None: as is")
    posterior: PosteriorConfig = PosteriorConfig()

    @model_validator(mode="after")
    def _depths(self):
        if len(self.depths) != len(self.strides) + 1:
            raise ValueError(f"depths needs {len(self.strides) + 1} entries, one a stage, got {len(self.depths)}")
        return self

    @property
    def hop(self) -> int:
        hop = self.frame_hop
        for stride in self.strides:
            hop *= stride
        return hop


class TextTokenizerConfig(Config):
    """bytes: the 256 bytes, merge-free. bpe: byte-level BPE trained on the recipe's own text, `vocab_size` entries.
    backbone: read from a language model, whose embedding has `vocab_size` rows.
    classes: each distinct text is one token, which opens the span that follows (class-conditional models, PAPER §2).
    """

    kind: Literal["bytes", "bpe", "backbone", "classes"] = "bytes"
    vocab_size: int = Field(1024, ge=1, description="bpe and backbone")
    special: dict[str, int | None] = Field(
        default_factory=dict,
        description="backbone only: special tokens that its vocabulary has, by name (bos, eos, …); null: there is none",
    )

    @model_validator(mode="after")
    def _fits(self):
        if self.kind == "bpe" and self.vocab_size < 256:
            raise ValueError(f"vocab_size {self.vocab_size} has no room for the 256 bytes")
        if self.special and self.kind != "backbone":
            raise ValueError(
                f"special tokens {sorted(self.special)} are named for a backbone only, kind is {self.kind!r}"
            )
        beyond = {name: i for name, i in self.special.items() if i is not None and not 0 <= i < self.vocab_size}
        if beyond:
            raise ValueError(f"special tokens {beyond} are outside the vocabulary of {self.vocab_size}")
        return self


# --------------------------------------------------------------------- model


class RopeScalingConfig(Config):
    """Llama 3's: slow rotations are slowed by `factor` for a context longer than the `context_length` of pre-training.

    A frequency that turns `high_frequency` times or more within `context_length` stays, one that turns at most
    `low_frequency` times is divided by `factor`, and between them the two are mixed linearly in the number of turns.
    """

    factor: float = Field(gt=0)
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    context_length: int = 8192

    @model_validator(mode="after")
    def _ordered(self):
        if self.low_frequency >= self.high_frequency:
            raise ValueError(f"low_frequency {self.low_frequency} is not below high_frequency {self.high_frequency}")
        return self


class TransformerConfig(Config):
    """Causal pre-RMSNorm SwiGLU RoPE Transformer with the options that Llama 3, Qwen2 and Qwen3 need (PAPER §1.1)."""

    width: int = 192
    num_layers: int = 6
    num_heads: int = 4
    num_kv_heads: int | None = Field(None, description="grouped-query attention; default num_heads")
    head_dim: int | None = Field(None, description="default width / num_heads")
    ffn_width: int | None = Field(None, description="default 8/3 of the width, rounded up to a multiple of 64")
    qkv_bias: bool = False
    qk_norm: bool = False
    norm_eps: float = 1e-6
    norm_weight: bool = Field(True, description="learned RMSNorm weights; the authors' code has none")
    rope_base: float = 10000.0
    rope_scaling: RopeScalingConfig | None = None
    rope_interleaved: bool = Field(False, description="pairs (0,1),(2,3) as the authors; else halves as Llama")
    rope_closed: bool = Field(False, description="exponents linspace(0, 1, E/2), 1 included, as the authors; else 2j/E")
    context_length: int = 1024
    tied_embeddings: bool = False
    dropout: float = Field(0.0, ge=0, lt=1)


class DiffusionHeadConfig(Config):
    """MLP with AdaLN-Zero on timestep and hidden state (PAPER §1.3).

    A head must be several times as wide as its latents have channels: the noisy latent has to pass through it.
    """

    num_layers: int = 3
    width: int | None = Field(None, description="default the backbone's width")
    ffn_width: int | None = Field(None, description="default 8/3 of its width")
    latent_bias: bool = Field(False, description="a bias in the map of the noisy latent, as the authors' code")
    norm_weight: bool = Field(False, description="VibeVoice learns the RMSNorm weights of its head")
    condition_norm: bool = Field(True, description="RMSNorm on the hidden state first; others rely on the backbone's")
    norm_eps: float = 1e-6


class DiffusionConfig(Config):
    """What is predicted and how noise is laid out (PAPER §1.2)."""

    process: Literal["ddpm", "flow"] = "ddpm"
    schedule: Literal["cosine", "linear"] = "cosine"
    prediction: Literal["v", "epsilon", "x0"] = Field("v", description="flow always predicts the velocity")
    num_timesteps: int = 1000
    timesteps_per_latent: int = Field(4, ge=1, description="noise levels drawn per latent per step")
    target: Literal["sample", "mean"] = Field("sample", description="diffuse the sampled z or the posterior mean")


SPECIAL_OFFSET = -10.0
"""Keeps new special tokens from taking probability of a backbone's text; `interop/hf_llm.py` says how much is left."""


class SamplingConfig(Config):
    """What a model is sampled with unless the caller says otherwise."""

    steps: int = Field(20, ge=1, description="of the solver, a latent")
    guidance: float = Field(2.0, description="classifier-free guidance of pictures and speech; 1 is off")


class ModelConfig(Config):
    prompt: Literal["document", "vibevoice"] = Field(
        "document", description="of speech: how it was laid out in training, as a document or a script (PAPER §6)"
    )
    transformer: TransformerConfig = TransformerConfig()
    head: DiffusionHeadConfig = DiffusionHeadConfig()
    heads: dict[str, DiffusionHeadConfig] = Field({}, description="by modality, where it differs from `head`")
    diffusion: DiffusionConfig = DiffusionConfig()
    latent_projection: Literal["linear", "connector"] = Field(
        "linear", description="how latents enter: a linear map, or VibeVoice's Linear, RMSNorm, Linear"
    )
    answer: Literal["span", "document"] = Field(
        "span",
        description="an answer in speech is one span, inside which the text head chooses between going on and <EOD>; "
        "or, as VibeVoice, it lasts until <EOS>: at every position one of <BOD>, <EOD>, going on and <EOS>",
    )
    sampling: SamplingConfig = SamplingConfig()
    special_offset: float = Field(
        0.0,
        description="added to the text logits of <BOD>, <EOD>, <PROCEED>, <LATENT>: unlikely at first on a backbone",
    )


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
            raise ValueError("a model needs a transformer section or a backbone")
        if self.backbone is not None and self.transformer is not None:
            raise ValueError(f"the transformer section comes from backbone {self.backbone!r}, and is given as well")
        return self

    def resolved(self, transformer: TransformerConfig | None = None) -> ModelConfig:
        """What is built and saved: without the name of a backbone, whose `transformer` is given here."""
        fields = {name: getattr(self, name) for name in ModelConfig.model_fields}
        return ModelConfig(**fields | {"transformer": transformer or self.transformer})


# ---------------------------------------------------------------- data, training


class SourceConfig(Config):
    """One source of documents: an embedded one by name ("digits") or a JSONL manifest by path, and how often drawn."""

    name: str | None = None
    manifest: str | None = None
    task: str = Field("all", description="which documents: text_to_image, image_to_text, ... see `latentlm data list`")
    weight: float = Field(1.0, gt=0)
    limit: int | None = Field(None, gt=0, description="only the first so many items: a fixed subset")
    warped_copies: int = Field(0, ge=0, description="slightly turned, shifted and scaled copies of each picture")

    @model_validator(mode="after")
    def _one(self):
        if (self.name is None) == (self.manifest is None):
            raise ValueError("give either name (an embedded source) or manifest (a JSONL path)")
        return self


class DataConfig(Config):
    sources: tuple[SourceConfig, ...]
    sequence_length: int = Field(256, description="positions in a packed row")
    rows: int = Field(16, description="rows of a micro-batch")
    condition_dropout: float = Field(0.1, ge=0, le=1)


class OptimizerConfig(Config):
    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    muon_learning_rate: float = Field(0.02, gt=0, description="muon only: for the 2-D weights of the blocks")
    betas: tuple[float, float] = (0.9, 0.98)
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


class TrainingConfig(Config):
    steps: int = Field(1000, gt=0)
    accumulation: int = Field(1, gt=0, description="micro-batches a step, over all processes; a multiple of these")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where the hardware has it")
    parallel: Literal["replicate", "shard"] = Field("replicate", description="shard: FSDP2")
    threads: int | None = Field(None, gt=0, description="CPU threads a process; default cores / local processes")
    ema: float = Field(0.999, ge=0, lt=1, description="0 = no average; warmed up as (1 + k) / (10 + k)")
    seed: int = 0
    optimizer: OptimizerConfig = OptimizerConfig()
    loss_weights: dict[str, float] = Field(
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
            raise ValueError("adapter and freeze exclude each other: beside an adapter only adapter.full trains")
        return self


class TokenizersConfig(Config):
    """Text is built from the recipe; image and speech name trained tokenizer directories, or packaged ones ("tiny").

    `semantic` names a second tokenizer of speech (`parts: encoder` suffices), at the same rate: its latents are
    features, added to the model's input wherever speech is the answer (PAPER §6).
    """

    text: TextTokenizerConfig = TextTokenizerConfig()
    image: str | None = None
    speech: str | None = None
    semantic: str | None = None


# ------------------------------------------------------------------- recipes


def check_loss_weights(training: TrainingConfig, losses: Collection[str]) -> None:
    """ValueError for the first weight of a loss that there is not."""
    for name in training.loss_weights:
        if name not in losses:
            raise ValueError(f"training.loss_weights: no loss {name!r}{_did_you_mean(name, sorted(losses))}")


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
        if (self.model.backbone is None) == (self.tokenizers.text.kind == "backbone"):
            raise ValueError(
                f"tokenizers.text.kind is {self.tokenizers.text.kind!r} and model.backbone {self.model.backbone!r}: "
                "a backbone brings its text tokenizer, and nothing else does"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self):
        check_loss_weights(self.training, ("text", "end", "image", "speech"))
        if self.training.adapter and self.model.start is None and self.model.backbone is None:
            raise ValueError("training.adapter: needs model.start or model.backbone, a trained model to adapt")
        if self.model.start is not None:
            given = [f"model.{name}" for name in sorted(self.model.model_fields_set - {"start"})]
            given += [f"tokenizers.{name}" for name in sorted(self.tokenizers.model_fields_set)]
            if given:
                raise ValueError(f"{given[0]}: model.start {self.model.start!r} brings its own; leave this key out")
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

    mse: float = 1.0
    l1: float = 0.0


class SpeechReconstructionConfig(Config):
    """Weights of the named reconstruction losses of speech; multi-resolution STFT as DAC's mel distance."""

    mel: float = 1.0
    stft: float = 1.0
    waveform: float = 0.0


def _check_tokenizer_training(training: TrainingConfig, losses: Config) -> None:
    check_loss_weights(training, (*type(losses).model_fields, "prior"))
    if training.adapter or training.freeze:
        raise ValueError(f"training.{'adapter' if training.adapter else 'freeze'} is for language models")


class MediaConfig(Config):
    """Media for a tokenizer: sources as for the model; crops of `seconds` for speech."""

    sources: tuple[SourceConfig, ...]
    batch_size: int = 64
    seconds: float = Field(1.0, gt=0, description="speech only: length of a training crop")


class ImageTokenizerRecipe(Config):
    kind: Literal["image_tokenizer"] = "image_tokenizer"
    description: str = ""
    tokenizer: ImageTokenizerConfig
    losses: ImageReconstructionConfig = ImageReconstructionConfig()
    data: MediaConfig
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _consistent(self):
        _check_tokenizer_training(self.training, self.losses)
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
        _check_tokenizer_training(self.training, self.losses)
        return self


Recipe = Annotated[LatentLMRecipe | ImageTokenizerRecipe | SpeechTokenizerRecipe, Field(discriminator="kind")]
_RECIPE = TypeAdapter(Recipe)


def recipe_names() -> list[str]:
    """Names of the packaged recipes."""
    folder = resources.files("latentlm") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name_or_path: str | Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """A recipe by packaged name or YAML path; `overrides` maps dotted keys ("training.steps") to values.

    An override of model.backbone takes the place of the transformer and the text tokenizer that the recipe has.
    Raises RecipeError, one line naming file and key, with the nearest known key where one is close.
    """
    path = Path(name_or_path)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise RecipeError(f"{path}: no such recipe file")
        text = path.read_text()
    elif str(name_or_path) in recipe_names():
        text = (resources.files("latentlm") / "recipes" / f"{name_or_path}.yaml").read_text()
    else:
        hint = _did_you_mean(str(name_or_path), recipe_names())
        raise RecipeError(f"no recipe {str(name_or_path)!r}{hint}; packaged: {', '.join(recipe_names())}")
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{name_or_path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{name_or_path}: a recipe is a mapping with a `kind`")
    if (overrides or {}).get("model.backbone") is not None:
        overrides = {"model.transformer": None, "tokenizers.text": {"kind": "backbone"}} | overrides
    for key, value in (overrides or {}).items():
        _set(raw, key, value)
    return parse_recipe(raw, str(name_or_path))


def parse_recipe(raw: dict[str, Any], origin: str = "recipe") -> Recipe:
    """Validate a plain mapping; RecipeError as in `load_recipe`."""
    try:
        return _RECIPE.validate_python(raw)
    except ValidationError as error:
        raise RecipeError(f"{origin}: {describe(error, _model_for(raw))}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. ValueError, one line, names a file that is missing or holds anything else."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        fields = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: not a JSON object")
    return fields


def describe(error: ValidationError, model: type[BaseModel] | None) -> str:
    """A pydantic error as one line: the first offending key, what is wrong, and the nearest known key."""
    first = error.errors()[0]
    location = [part for part in first["loc"] if part not in _KINDS]
    key = ".".join(str(part) for part in location)
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        return f"unknown key {key!r}{_did_you_mean(str(location[-1]), known)}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error" and not key:  # of the recipe as a whole: it names its keys itself
        return message
    return f"{key or 'kind'}: {message}, got {str(first['input'])[:80]!r}"


_KINDS = {"latentlm", "image_tokenizer", "speech_tokenizer"}


def _model_for(raw: dict[str, Any]) -> type[BaseModel] | None:
    for model in get_args(get_args(Recipe)[0]):
        if raw.get("kind") == model.model_fields["kind"].default:
            return model
    return None


def _known_keys(model: type[BaseModel] | None, location: list) -> list[str]:
    for part in location:
        if model is None or isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        candidates = [annotation, *get_args(annotation)]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
    return list(model.model_fields) if model else []


def _did_you_mean(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else (f" (known: {', '.join(known)})" if known else "")


def _set(raw: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        raw = raw.setdefault(parent, {})
        if not isinstance(raw, dict):
            raise RecipeError(f"override {dotted!r}: {parent!r} is not a mapping")
    raw[last] = value
