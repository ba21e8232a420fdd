"""VibeVoice's keys: both layouts of 1.5B and 7B on the meta device, and Microsoft's own values of a tiny one."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_vibevoice import build as build_theirs
from tiny_vibevoice import save
from transformers import Qwen2Config, VibeVoiceConfig, VibeVoiceForConditionalGeneration

from latentlm.interop.checkpoint_files import CheckpointFiles
from latentlm.interop.mapping import check, export, fill
from latentlm.interop.vibevoice import load, load_realtime, read_config, rules
from latentlm.interop.vibevoice.load import KEPT, build, read_factors, unread
from latentlm.interop.vibevoice.realtime import RealtimeParts, realtime_rules, realtime_unread
from latentlm.media.sound import Audio

GOLDEN = Path(__file__).parent.parent / "golden" / "vibevoice_original"
MICROSOFT = "microsoft/VibeVoice d5895e7"
SIZES = {
    "1.5B": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "max_position_embeddings": 65536,
        "tie_word_embeddings": True,
        "vocab_size": 151936,
    },
    "7B": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        "vocab_size": 152064,
    },
}


def original_config(size: str) -> dict:
    """The golden config at a real size."""
    fields = json.loads((GOLDEN / "config.json").read_text())
    tokenizer = {"encoder_n_filters": 32, "encoder_ratios": [8, 5, 5, 4, 2, 2], "encoder_depths": "3-3-3-3-3-3-8"}
    fields["acoustic_tokenizer_config"] |= tokenizer | {"vae_dim": 64, "decoder_n_filters": 32}
    fields["acoustic_tokenizer_config"]["decoder_ratios"] = [8, 5, 5, 4, 2, 2]
    fields["semantic_tokenizer_config"] |= tokenizer | {"vae_dim": 128}
    fields["decoder_config"] |= SIZES[size] | {"num_hidden_layers": 28}
    fields["diffusion_head_config"] |= {"hidden_size": SIZES[size]["hidden_size"], "latent_size": 64, "head_layers": 4}
    return fields


def original_shapes(size: str) -> dict[str, tuple[int, ...]]:
    """Every parameter and buffer of Microsoft's class at a real size."""
    return read_names("names.txt", 1 + list(SIZES).index(size))


def read_names(file: str, column: int) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for line in (GOLDEN / file).read_text().splitlines():
        fields = line.split()
        shape = () if fields[column] == "scalar" else tuple(int(n) for n in fields[column].split("x"))
        found = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", fields[0])
        if found is None:
            shapes[fields[0]] = shape
            continue
        before, first, last, after = found.groups()
        shapes |= {f"{before}{i}{after}": shape for i in range(int(first), int(last) + 1)}
    return shapes


def check_all(fields: dict, shapes: dict[str, tuple[int, ...]]) -> int:
    """Every name is read once and every tensor of ours is filled; how many names there are."""
    found = read_config(fields)
    source = CheckpointFiles(Path("meta"), fields, shapes)
    whole = build(found, 1.0, 0.0, torch.float32)
    found_rules = rules(found.layout, found.model, found.speech, found.semantic)
    check(whole, source, found_rules, ignore=unread(found), keep=KEPT)
    assert {found.layout.scale, found.layout.bias} <= shapes.keys()
    return len(shapes)


@pytest.mark.parametrize("size", SIZES)
def test_original_layout(size):
    shapes = original_shapes(size)
    assert check_all(original_config(size), shapes) == 1205
    assert sum(name.startswith("model.acoustic_tokenizer.encoder.") for name in shapes) == 276


@pytest.mark.parametrize("size", SIZES)
def test_layout_of_transformers(size):
    text = Qwen2Config(**SIZES[size] | {"num_hidden_layers": 28})
    head = {"intermediate_size": 3 * SIZES[size]["hidden_size"]}
    config = VibeVoiceConfig(text_config=text, diffusion_head_config=head)
    with torch.device("meta"):
        theirs = VibeVoiceForConditionalGeneration(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    assert check_all(config.to_dict(), shapes) == 1205


def test_realtime():
    """All of the release but the embedding that its upper layers never use."""
    fields = original_config("1.5B")
    fields["decoder_config"] |= {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14}
    fields["decoder_config"] |= {"num_hidden_layers": 24, "max_position_embeddings": 8192, "tie_word_embeddings": False}
    fields["diffusion_head_config"] |= {"hidden_size": 896}
    del fields["semantic_tokenizer_config"]
    found = read_config(fields | {"tts_backbone_num_hidden_layers": 20})
    with torch.device("meta"):
        parts = RealtimeParts(found)
    shapes = read_names("realtime_names.txt", 1)
    assert not any(name.startswith("model.acoustic_tokenizer.encoder.") for name in shapes)
    source = CheckpointFiles(Path("meta"), {}, shapes)
    check(parts, source, realtime_rules(found), ignore=realtime_unread(found), keep=KEPT)


def test_realtime_parts_load_and_decode(tmp_path):
    fields = json.loads((GOLDEN / "config.json").read_text())
    del fields["semantic_tokenizer_config"]
    fields |= {"tts_backbone_num_hidden_layers": 1}
    found = read_config(fields)
    torch.manual_seed(0)
    parts = RealtimeParts(found)
    export(parts, realtime_rules(found), tmp_path, keep=KEPT)
    weights = load_file(tmp_path / "model.safetensors")
    weights |= {found.layout.scale: torch.tensor(0.5), found.layout.bias: torch.tensor(0.25)}
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(fields))
    again = load_realtime(tmp_path)
    latents = torch.randn(3, 4)
    expected = parts.speech.decoder((latents / 0.5 - 0.25)[None])[0]
    torch.testing.assert_close(again.speech.decode([latents])[0].samples, expected)
    with pytest.raises(ValueError, match="`load_realtime` loads its parts"):
        load(tmp_path)


def test_a_tied_head_may_be_left_out(tmp_path):
    theirs = build_theirs(tied=True)
    folder = save(theirs, tmp_path)
    assert "lm_head.weight" not in CheckpointFiles.open(folder).names
    model = load(folder).model
    assert model.text_head.weight is model.embed_tokens.weight
    assert torch.equal(model.text_head.weight, theirs.get_input_embeddings().weight)


@torch.no_grad()
def test_microsofts_own_values(agree):
    """Weights, inputs and outputs of their code; tests/golden/README.md has the command."""
    source, expected = CheckpointFiles.open(GOLDEN / "model.safetensors"), load_file(GOLDEN / "expected.safetensors")
    tokens = {"eos": 40, "bod:speech": 41, "eod": 42, "proceed": 43, "latent": 43, "bos": None, "bod:image": None}
    found = replace(read_config(source.config), special=tokens)  # the golden vocabulary is smaller than Qwen's
    whole = build(found, *read_factors(source, found), torch.float32)
    fill(whole, source, rules(found.layout, found.model, found.speech, found.semantic), ignore=unread(found), keep=KEPT)
    model, speech, semantic = (whole.eval()[name] for name in ("model", "speech", "semantic"))

    def same(part: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        agree(f"VibeVoice original, {part}", ours, theirs, 1e-4, MICROSOFT)

    sound = expected["audio"]
    normalised = (expected["acoustic_latents"] - 0.1875) * 0.6875
    same("acoustic encoder", speech.stream_encoder().push(sound), normalised)
    same("semantic encoder", semantic.stream_encoder().push(sound), expected["semantic_features"])
    latents = (expected["latents"] - 0.1875) * 0.6875
    same("acoustic decoder", speech.decode([latents])[0].samples, expected["decoded"])
    decoder, encoder = speech.stream_decoder(), semantic.stream_encoder()
    chunks = [decoder.push(latents[a:b]) for a, b in ((0, 1), (1, 2), (2, 3), (3, 7))]
    same("acoustic decoder, streamed", torch.cat(chunks), expected["decoded_streamed"])
    heard = torch.cat([encoder.push(chunk) for chunk in chunks])
    same("semantic encoder, streamed", heard, expected["features_streamed"])
    same("connectors", model.embed_latents["speech"](expected["connector_in"]), expected["connector_out"])
    features = model.embed_features["speech"](expected["semantic_connector_in"])
    same("connectors", features, expected["semantic_connector_out"])
    head = model.heads["speech"](expected["connector_in"], expected["head_time"], expected["head_hidden"])
    same("diffusion head", head, expected["head_out"])
    count = torch.arange(len(expected["ids"]))[None]
    embedded = model.embed_tokens(expected["ids"][None])
    hidden = model.transformer(embedded, count, torch.zeros_like(count))[0]
    same("hidden states", hidden, expected["hidden"])
    same("logits", model.text_logits(hidden), expected["logits"])


def test_sigma_is_theirs(tmp_path):
    """E|σ| in raw latents is about the fix_std of the original, and the std of σ is fix_std / 0.8 (PAPER §1.7)."""
    folder = save(build_theirs(vae_std=0.625), tmp_path)
    speech = load(folder).tokenizers["speech"]
    latents = speech.encode([Audio(torch.randn(400), 24000)])[0]
    assert latents.posterior == "sigma"
    assert float(latents.std * speech.latent_std) == pytest.approx(0.625, rel=1e-6)
    generator = torch.Generator().manual_seed(0)
    spread = torch.stack([(latents.sample(generator) - latents.mean).std() for _ in range(4000)]) * speech.latent_std
    assert float(spread.mean()) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"acoustic_tokenizer_config": {"pad_mode": "reflect"}}, "acoustic_tokenizer_config.pad_mode 'reflect'"),
        ({"acoustic_tokenizer_config": {"std_dist_type": "fix"}}, "acoustic_tokenizer_config.std_dist_type 'fix'"),
        ({"acoustic_tokenizer_config": {"decoder_depths": "1-1-1-1"}}, "acoustic_tokenizer_config.decoder_depths"),
        ({"semantic_tokenizer_config": {"channels": 2}}, "semantic_tokenizer_config.channels 2"),
        ({"diffusion_head_config": {"prediction_type": "sample"}}, "diffusion_head_config.prediction_type 'sample'"),
        ({"decoder_config": {"hidden_act": "gelu"}}, "decoder_config.hidden_act 'gelu'"),
        ({"decoder_config": None}, "decoder_config is missing"),
        ({"decoder_config": {"hidden_size": None}}, "decoder_config.hidden_size is missing"),
        ({"acoustic_tokenizer_config": {"vae_dim": "64"}}, "vae_dim '64' is not a whole number above 0"),
        ({"semantic_tokenizer_config": {"encoder_n_filters": 0}}, "semantic_tokenizer_config.encoder_n_filters 0 is"),
        (
            {"diffusion_head_config": {"ddpm_algorithm_type": "sde-dpmsolver++"}},
            "diffusion_head_config.ddpm_algorithm_type 'sde-dpmsolver++' is not supported, only 'dpmsolver++' is",
        ),
        (
            {"diffusion_head_config": {"ddpm_batch_mult": 2}},
            "diffusion_head_config.ddpm_batch_mult 2 is not supported, did you mean 'ddpm_batch_mul'?",
        ),
        ({"acoustic_tokenizer_config": {"pad_left": 1}}, "acoustic_tokenizer_config.pad_left 1 is not supported"),
        ({"semantic_tokenizer_config": {"normalize": True}}, "semantic_tokenizer_config.normalize True is not"),
        ({"acoustic_tokenizer_config": {"encoder_depths": "3-x"}}, "acoustic_tokenizer_config.encoder_depths '3-x'"),
        ({"semantic_tokenizer_config": {"encoder_ratios": ["y"]}}, "semantic_tokenizer_config.strides.0: Input should"),
    ],
)
def test_a_field_that_is_not_supported_is_named(change, message):
    fields = original_config("1.5B")
    for part, values in change.items():
        fields[part] = None if values is None else fields[part] | values
    with pytest.raises(ValueError, match=re.escape(message)):
        read_config(fields)


@pytest.mark.parametrize("part", ["audio_config", "semantic_model_config", "diffusion_head_config"])
def test_an_unknown_field_of_a_section_is_named_in_the_layout_of_transformers(part):
    fields = VibeVoiceConfig().to_dict()
    read_config(fields)
    fields[part]["_private"] = fields[part]["initializer_range"] = 0.5
    read_config(fields)
    fields[part]["noise"] = 0.5
    with pytest.raises(ValueError, match=f"^{part}.noise 0.5 is not supported"):
        read_config(fields)


def test_what_is_wrong_beside_the_config_is_named_with_its_file(tmp_path):
    folder = save(build_theirs(), tmp_path)
    processor, weights = folder / "preprocessor_config.json", load_file(folder / "model.safetensors")
    for text, message in (
        ("{oops", "preprocessor_config.json: not JSON"),
        ('{"sampling_rate": "24k"}', "sampling_rate '24k' of preprocessor_config.json or"),
        ('{"target_dB_FS": null}', "target_dB_FS None of"),
    ):
        processor.write_text(text)
        with pytest.raises(ValueError, match=re.escape(message)):
            load(folder)
    processor.unlink()
    scale = "model.latent_scaling_factor"
    for value, message in (
        (torch.ones(3), f"{scale} has shape (3,), expected one number"),
        (torch.tensor(float("nan")), f"{scale} is nan"),
    ):
        save_file(weights | {scale: value}, folder / "model.safetensors")
        with pytest.raises(ValueError, match=re.escape(message)):
            load(folder)


def test_another_model_type_is_named():
    with pytest.raises(ValueError, match="model_type 'vibevoice_asr' is not supported"):
        read_config({"model_type": "vibevoice_asr"})
