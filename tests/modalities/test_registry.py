"""The registry: every file is a modality, found by name; none renumbers a checkpoint; old ones answer alike."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import latentlm
from latentlm.checkpoint import build_from_config, load_tokenizers, modality_specs, write_config
from latentlm.config import TextTokenizerConfig, load_recipe
from latentlm.config import modalities as registry
from latentlm.config.modalities import modality, modality_names, modality_of, modality_of_suffix, tokenizer_kinds
from latentlm.tokenizers.text import FIRST_MODALITIES, SpecialTokens, TextTokenizer
from latentlm.types import Modality, Segment

GOLDEN = Path(__file__).parents[1] / "golden" / "before_special_ids"


@pytest.mark.parametrize("name", modality_names())
def test_a_record_is_whole_and_agrees_with_its_file(name):
    found = modality(name)
    assert isinstance(found, Modality)
    assert found.name == name == found.segment.modality
    assert issubclass(found.segment, Segment)
    assert all(tokenizer.modality == name for _, tokenizer in found.tokenizers.values())
    assert all(config.model_fields["kind"].default == kind for kind, (config, _) in found.tokenizers.items())
    assert set(found.written) <= set(found.suffixes)
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in found.suffixes)


def test_no_suffix_tokenizer_or_second_tokenizer_belongs_to_two():
    everyone = registry.modalities()
    suffixes = [suffix for each in everyone for suffix in each.suffixes]
    assert len(suffixes) == len(set(suffixes))
    assert len(tokenizer_kinds()) == sum(len(each.tokenizers) for each in everyone)
    assert not set(registry.second_tokenizers()) & set(modality_names())


def test_media_and_suffixes_are_told_apart():
    assert modality_of(np.zeros((3, 2))).name == "vectors"
    assert modality_of(latentlm.Audio(torch.zeros(5), 8000)).name == "speech"
    assert modality_of("a text") is None
    assert modality_of_suffix(".png").name == "image"
    assert modality_of_suffix(".txt") is None


def test_an_unknown_modality_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="no modality 'vector', did you mean 'vectors'"):
        modality("vector")


def test_a_file_that_is_added_is_a_modality(tmp_path, monkeypatch):
    for name in ("image", "speech", "vectors", "actions"):
        (tmp_path / f"{name}.py").write_text("")
    monkeypatch.setattr(registry, "FOLDER", tmp_path)
    registry.modality_names.cache_clear()
    try:
        assert registry.modality_names() == ("actions", "image", "speech", "vectors")
    finally:
        registry.modality_names.cache_clear()


# ------------------------------------------------------------------ special tokens


def test_a_model_without_the_new_modality_has_the_vocabulary_that_it_always_had():
    special = TextTokenizer().special
    assert special.names() == {
        256: "<BOS>", 257: "<EOS>", 258: "<EOD>", 259: "<PROCEED>", 260: "<LATENT>", 261: "<BOD:image>",
        262: "<BOD:speech>",
    }  # fmt: skip


def test_a_modality_of_a_model_is_numbered_behind_them():
    more = TextTokenizer().with_modalities(["vectors", "image"])
    assert more.special.bod == {"image": 261, "speech": 262, "vectors": 263}
    assert more.vocab_size == 264
    assert TextTokenizer().with_modalities(FIRST_MODALITIES).special == TextTokenizer().special


def test_saved_ids_are_those_that_are_read_whatever_the_order_is_today(tmp_path):
    TextTokenizer().with_modalities(["vectors"]).save(tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    assert fields["ids"]["bod:vectors"] == 263
    fields["ids"] |= {"bod:vectors": 261, "bod:image": 263}  # as a release would that numbers them otherwise
    path.write_text(json.dumps(fields))
    loaded = TextTokenizer.load(tmp_path)
    assert loaded.special.bod == {"image": 263, "speech": 262, "vectors": 261}
    assert loaded.vocab_size == 264


def test_ids_that_lack_a_token_are_one_line(tmp_path):
    TextTokenizer().save(tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    del fields["ids"]["eod"]
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"config.json: special tokens \['eod'\] are needed"):
        TextTokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"foo": 300}, r"unknown special tokens \['foo'\]"),
        (
            {"eod": 260},
            "special tokens 'latent' and 'eod' have the same id 260|'eod' and 'latent' have the same id 260",
        ),
        ({"bod:image": 300}, r"ids .*300\] of special tokens do not follow the base vocabulary of 256"),
        ({"bod:image": 65}, "do not follow the base vocabulary of 256"),
        ({"latent": -1}, "do not follow the base vocabulary of 256"),
    ],
)
def test_wrong_ids_are_one_line_that_names_the_file(tmp_path, change, said):
    TextTokenizer().save(tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    fields["ids"] |= change
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=rf"config.json: .*({said})"):
        TextTokenizer.load(tmp_path)


def test_tokens_that_a_backbone_has_once_may_be_one():
    special = SpecialTokens.after(10, {"bos": 3, "eos": 3, "proceed": 4, "latent": 4})
    assert (special.bos, special.eos, special.proceed, special.latent) == (3, 3, 4, 4)


def test_a_modality_without_a_token_is_one_line(tmp_path, model, tokenizers):
    write_config(tmp_path, model, tokenizers)
    text = TextTokenizer(TextTokenizerConfig(ids=tokenizers["text"].special.to_ids()))
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"speech"', '"vectors"'))
    with pytest.raises(
        ValueError, match=r"config.json: modalities.vectors: the text tokenizer has no token 'bod:vectors'"
    ):
        build_from_config(tmp_path, text)


def test_a_recipe_numbers_no_special_tokens():
    with pytest.raises(ValueError, match=r"tokenizers.text.ids: is written into checkpoints"):
        load_recipe("tiny", {"tokenizers.text.ids": {"eos": 300}})


def test_ids_round_trip():
    special = SpecialTokens.after(10, {"bos": None})
    assert SpecialTokens.of(special.to_ids()) == special


# ------------------------------------------------------------------ a checkpoint from before


def test_a_checkpoint_made_before_ids_were_saved_gives_the_same_outputs():
    """Weights, tokenizers and outputs were written by the release before modalities were registered."""
    expected = load_file(GOLDEN / "expected.safetensors")
    assert "ids" not in json.loads((GOLDEN / "model" / "tokenizers" / "text" / "config.json").read_text())
    pipeline = latentlm.load(GOLDEN / "model")
    (image,) = pipeline.generate("red", to="image", guidance=2.0, steps=5, seed=1)
    assert np.abs(np.array(image, np.int16) - expected["image"].numpy()).max() <= 1
    options = {"guidance": 2.0, "steps": 4, "seed": 25, "temperature": 1.0, "max_latents": 9}
    (clip,) = pipeline.generate("hi", to="speech", **options)
    torch.testing.assert_close(clip.samples, expected["speech"], atol=1e-4, rtol=0)
    (words,) = pipeline.generate([image], to="text", seed=4, max_tokens=12)
    assert words.encode() == bytes(expected["text"].tolist())
    document = latentlm.Document(
        (
            latentlm.Text("a b", condition=True, loss=False),
            latentlm.Image(image),
            latentlm.Text("c"),
            latentlm.Speech(clip),
        )
    )
    scores = pipeline.score(document)
    found = [scores.text_nats, scores.end_nats, scores.diffusion["image"], scores.diffusion["speech"]]
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected["score"], atol=1e-3, rtol=1e-4)


def test_specs_come_from_the_tokenizers_alone():
    specs = modality_specs(load_tokenizers(GOLDEN / "model" / "tokenizers"))
    assert {name: (spec.latent_dim, spec.num_latents) for name, spec in specs.items()} == {
        "image": (6, 4),
        "speech": (5, None),
    }
