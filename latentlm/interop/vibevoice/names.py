"""Rules from VibeVoice's weights, in both layouts, to our tensors.

Place in the flow: interop, between `configs.py` and `load.py`. Our side is a module with the children `model`
(LatentLM), `speech` (acoustic tokenizer) and `semantic` (second tokenizer). All matrices keep their orientation; gate
and up are one matrix here, and so are q, k and v. Stage 0 of an encoder or decoder is its stem and the blocks after it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...config import DiffusionHeadConfig, ModelConfig, SpeechTokenizerConfig
from ..hf_llm import rules as backbone_rules
from ..mapping import Rule, weight_and_bias


@dataclass(frozen=True)
class Layout:
    """Names of one layout. `{stage}` counts from 0, `{layer}` = stage - 1, `{block}` counts inside a stage.

    stems, resamplings   the convolution before stage 0, and before each later stage, for "encoder" and "decoder"
    stem_block, block    a ConvNeXt block of stage 0, and of a later stage
    """

    name: str
    acoustic: str
    semantic: str
    stems: dict[str, str]
    resamplings: dict[str, str]
    stem_block: str
    block: str
    mixer: str
    out: str
    acoustic_connector: str
    semantic_connector: str
    connector: tuple[str, str, str]
    head: str
    timestep: tuple[str, str]
    modulation: str
    final: tuple[str, str]
    scale: str
    bias: str


TRANSFORMERS = Layout(
    name="transformers",
    acoustic="model.audio_tower",
    semantic="model.semantic_tokenizer_encoder",
    stems={"encoder": "stem.conv.conv", "decoder": "stem.conv.conv"},
    resamplings={"encoder": "conv_layers.{layer}.conv.conv", "decoder": "conv_layers.{layer}.convtr.convtr"},
    stem_block="stem.stage.{block}",
    block="conv_layers.{layer}.stage.{block}",
    mixer="mixer.conv",
    out="head.conv",
    acoustic_connector="model.multi_modal_projector",
    semantic_connector="model.semantic_connector",
    connector=("linear_1", "act", "linear_2"),
    head="model.diffusion_head",
    timestep=("timestep_proj.fc1", "timestep_proj.fc2"),
    modulation="linear",
    final=("final_layer.linear_1", "final_layer.linear_2"),
    scale="model.latent_scaling_factor",
    bias="model.latent_bias_factor",
)

ORIGINAL = Layout(
    name="original",
    acoustic="model.acoustic_tokenizer",
    semantic="model.semantic_tokenizer.encoder",
    stems={"encoder": "downsample_layers.0.0.conv.conv", "decoder": "upsample_layers.0.0.conv.conv"},
    resamplings={
        "encoder": "downsample_layers.{stage}.0.conv.conv",
        "decoder": "upsample_layers.{stage}.0.convtr.convtr",
    },
    stem_block="stages.0.{block}",
    block="stages.{stage}.{block}",
    mixer="mixer.conv.conv.conv",
    out="head.conv.conv",
    acoustic_connector="model.acoustic_connector",
    semantic_connector="model.semantic_connector",
    connector=("fc1", "norm", "fc2"),
    head="model.prediction_head",
    timestep=("t_embedder.mlp.0", "t_embedder.mlp.2"),
    modulation="adaLN_modulation.1",
    final=("final_layer.adaLN_modulation.1", "final_layer.linear"),
    scale="model.speech_scaling_factor",
    bias="model.speech_bias_factor",
)

BACKBONE = "model.language_model."


def rules(
    layout: Layout, model: ModelConfig, speech: SpeechTokenizerConfig, semantic: SpeechTokenizerConfig
) -> list[Rule]:
    """Rules for every weight of a checkpoint except scale and bias of the latents, which become buffers (`load.py`)."""
    found = _prefixed("model.", backbone_rules(model.transformer, prefix=BACKBONE))
    found += connector_rules("model.embed_latents.speech", layout.acoustic_connector, layout)
    found += connector_rules("model.embed_features.speech", layout.semantic_connector, layout)
    found += head_rules("model.heads.speech", layout.head, model.head, layout)
    for half in ("encoder", "decoder"):
        found += half_rules(f"speech.{half}", f"{layout.acoustic}.{half}", half, speech, layout)
    return found + half_rules("semantic.encoder", layout.semantic, "encoder", semantic, layout)


def half_rules(ours: str, theirs: str, half: str, config: SpeechTokenizerConfig, layout: Layout) -> list[Rule]:
    """Rules for the encoder or decoder (`half`) of a speech tokenizer."""
    depths = config.depths if half == "encoder" else config.depths[::-1]
    resampling = {"encoder": "downs", "decoder": "ups"}[half]
    found = weight_and_bias(f"{ours}.stem", f"{theirs}.{layout.stems[half]}")
    for stage, depth in enumerate(depths):
        place = {"stage": stage, "layer": stage - 1}
        if stage:
            found += weight_and_bias(
                f"{ours}.{resampling}.{stage - 1}", f"{theirs}.{layout.resamplings[half].format(**place)}"
            )
        for block in range(depth):
            name = (layout.block if stage else layout.stem_block).format(**place, block=block)
            found += block_rules(f"{ours}.stages.{stage}.blocks.{block}", f"{theirs}.{name}", layout)
    return found + weight_and_bias(f"{ours}.head", f"{theirs}.{layout.out}")


def block_rules(ours: str, theirs: str, layout: Layout) -> list[Rule]:
    """Rules for a ConvNeXt block."""
    pairs = {"mixer": layout.mixer, "ffn.0": "ffn.linear1", "ffn.2": "ffn.linear2"}
    found = [rule for a, b in pairs.items() for rule in weight_and_bias(f"{ours}.{a}", f"{theirs}.{b}")]
    same = ("norm.weight", "ffn_norm.weight", "gamma", "ffn_gamma")
    return found + [Rule(f"{ours}.{name}", (f"{theirs}.{name}",)) for name in same]


def connector_rules(ours: str, theirs: str, layout: Layout) -> list[Rule]:
    """Rules for a connector."""
    up, norm, out = (f"{theirs}.{name}" for name in layout.connector)
    return [
        *weight_and_bias(f"{ours}.up", up),
        Rule(f"{ours}.norm.weight", (f"{norm}.weight",)),
        *weight_and_bias(f"{ours}.out", out),
    ]


def head_rules(ours: str, theirs: str, config: DiffusionHeadConfig, layout: Layout) -> list[Rule]:
    """Rules for the diffusion head."""
    names = {
        "latent_in": "noisy_images_proj",
        "condition_in": "cond_proj",
        "timestep.up": layout.timestep[0],
        "timestep.down": layout.timestep[1],
        "final.modulation": layout.final[0],
        "final.out": layout.final[1],
    }
    found = []
    for number in range(config.num_layers):
        block, layer = f"blocks.{number}", f"layers.{number}"
        names |= {f"{block}.norm": f"{layer}.norm", f"{block}.ffn.down": f"{layer}.ffn.down_proj"}
        names |= {f"{block}.modulation": f"{layer}.{layout.modulation}"}
        up = tuple(f"{theirs}.{layer}.ffn.{part}_proj.weight" for part in ("gate", "up"))
        found.append(Rule(f"{ours}.{block}.ffn.up.weight", up, "cat"))
    return found + [Rule(f"{ours}.{a}.weight", (f"{theirs}.{b}.weight",)) for a, b in names.items()]


def _prefixed(prefix: str, found: list[Rule]) -> list[Rule]:
    return [replace(rule, target=prefix + rule.target) for rule in found]
