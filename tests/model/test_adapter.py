"""LoRA adapters: what trains, what is kept, and that merged, kept and live adapters are one and the same."""

import copy
import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import small_model

from latentlm.config import AdapterConfig
from latentlm.data.packing import DocumentEncoder, pack
from latentlm.generation.pipeline import Pipeline
from latentlm.generation.prompts import as_prompt
from latentlm.generation.request import Request
from latentlm.modalities.image import Image
from latentlm.modalities.speech import Speech
from latentlm.model import adapter
from latentlm.model.latentlm import LatentLM
from latentlm.types import Document, Latents, Text

CONFIG = AdapterConfig(rank=3, alpha=6)


def adapted(model: LatentLM, config: AdapterConfig = CONFIG) -> LatentLM:
    """A copy of `model` with an adapter that has been moved away from its beginning, and so has what trains whole."""
    pytest.importorskip("peft")
    model = copy.deepcopy(model)
    torch.manual_seed(1)
    adapter.insert(model, config, "small")
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(0.1 * torch.randn_like(value))
    return model


def losses(model: torch.nn.Module, tokenizers: dict) -> torch.Tensor:
    latents = {name: Latents(torch.ones(4, tokenizers[name].latent_dim), torch.tensor(0.0), "none") for name in KINDS}
    segments = (Text("ab"), *(kind(latents[name]) for name, kind in KINDS.items()), Text("c"))
    dims = {name: tokenizers[name].latent_dim for name in KINDS}
    batch = pack([DocumentEncoder(tokenizers["text"])(Document(segments))], dims)
    with torch.no_grad():
        sums = model(batch, torch.Generator().manual_seed(0))
    return torch.stack(list(sums.values()))


KINDS = {"image": Image, "speech": Speech}


@pytest.fixture(scope="module")
def live(model) -> LatentLM:
    return adapted(model)


@pytest.fixture
def kept(live, model, tmp_path):
    adapter.save(live, live.state_dict(), tmp_path, adapter.start_of(model))
    return tmp_path


def merged(live: LatentLM, tokenizers: dict) -> LatentLM:
    plain = small_model(tokenizers).eval()
    plain.load_state_dict(adapter.merge(live, live.state_dict()))
    return plain


def test_it_begins_as_the_model_it_adapts_and_alone_trains(model, tokenizers):
    pytest.importorskip("peft")
    new = copy.deepcopy(model)
    adapter.insert(new, CONFIG, "small")
    assert torch.equal(losses(new, tokenizers), losses(model, tokenizers))
    trained = {name for name, value in new.named_parameters() if value.requires_grad}
    assert {name for name in trained if ".lora_" not in name} == {
        name for name, _ in model.named_parameters() if name.startswith(("heads.", "embed_latents."))
    }
    assert len([name for name in trained if ".lora_A." in name]) == 4 * len(model.transformer.blocks)


def test_merged_kept_and_live_are_the_same(live, kept, model, tokenizers):
    once = merged(live, tokenizers)
    torch.testing.assert_close(losses(once, tokenizers), losses(live, tokenizers), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(losses(once, tokenizers), losses(model, tokenizers), rtol=1e-2)
    again = copy.deepcopy(model)
    adapter.apply(again, kept)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), once.parameters(), strict=True))


def test_an_adapter_on_another_model_is_an_error_so_it_is_not_applied_twice(kept, model):
    twice = copy.deepcopy(model)
    adapter.apply(twice, kept)
    once = copy.deepcopy(twice.state_dict())
    with pytest.raises(ValueError, match=r"adapter_model.safetensors: this adapter was trained on small, but"):
        adapter.apply(twice, kept)
    assert all(torch.equal(value, once[name]) for name, value in twice.state_dict().items())
    change(kept, lambda tensors: tensors)  # a file that does not say what it adapts
    adapter.apply(twice, kept)


def test_peft_reads_what_is_kept(live, kept, model, tokenizers):
    from peft import PeftModel

    theirs = PeftModel.from_pretrained(copy.deepcopy(model), kept)
    torch.testing.assert_close(losses(theirs, tokenizers), losses(live, tokenizers), rtol=1e-5, atol=1e-5)


def test_a_head_that_is_being_adapted_samples_as_the_merged_one(model, tokenizers):
    """Four and more rows are multiplied by packed weights, which a live adapter is not part of."""
    config = AdapterConfig(rank=3, targets=("transformer", "heads"), full=())
    live = adapted(model, config)
    requests = [Request(as_prompt("ab"), "image", guidance=1.0, steps=2, seed=seed) for seed in range(5)]
    ours, theirs = (Pipeline(m.eval(), tokenizers).generate_batch(requests) for m in (live, merged(live, tokenizers)))
    for a, b in zip(ours, theirs, strict=True):
        assert list(a.segments[0].content.getdata()) == list(b.segments[0].content.getdata())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ("atention",)}, r"training.adapter.targets: 'atention' names nothing .*has .*transformer"),
        ({"full": ("head",)}, r"training.adapter.full: 'head' names nothing in this model"),
        ({"targets": ("ffn.up",)}, r"heads.image.blocks.0.ffn.up is both in targets and in full"),
        ({"targets": ("text_head",)}, r"text_head cannot have an adapter"),
    ],
)
def test_modules_that_cannot_be_adapted_are_named(model, options, message):
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match=message):
        adapter.insert(copy.deepcopy(model), AdapterConfig(**options), "small")


def test_without_peft_it_says_what_to_install(model, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install peft"):
        adapter.insert(model, CONFIG, "small")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("x.a", {"x.a.b"}),
        ("a.*.c", {"a.b.c", "a.b.b.c"}),
        ("b", {"a.b.c", "x.a.b", "a.b.b.c"}),
        ("*", {"a.b.c", "x.a.b", "a.b.b.c", "ab"}),
    ],
)
def test_patterns_name_parts_of_dotted_names(pattern, names):
    assert adapter.named([pattern], ["a.b.c", "x.a.b", "a.b.b.c", "ab"], "key") == names


def test_frozen_weights_do_not_train(model):
    part = copy.deepcopy(model)
    adapter.freeze(part, ["transformer", "embed_*"])
    trained = {name.split(".")[0] for name, value in part.named_parameters() if value.requires_grad}
    assert trained == {"heads", "text_head"}
    with pytest.raises(ValueError, match=r"training.freeze: 'tokenizers' names nothing"):
        adapter.freeze(part, ["tokenizers"])


# ---------------------------------------------------------------- what changes nothing, what does not fit


def test_an_adapter_that_training_did_not_move_is_an_error(model):
    pytest.importorskip("peft")
    new = copy.deepcopy(model)
    adapter.insert(new, CONFIG, "small")
    with pytest.raises(ValueError, match="the adapter changes nothing"):
        adapter.merge(new, new.state_dict())


def change(folder, edit):
    tensors = load_file(folder / adapter.WEIGHTS)
    save_file(edit(tensors), folder / adapter.WEIGHTS)


def test_a_kept_adapter_that_changes_nothing_is_an_error(kept, model):
    whole = dict(model.state_dict())

    def nothing(tensors):
        start = {name: whole.get(name.removeprefix(adapter.PREFIX), value) for name, value in tensors.items()}
        return {name: torch.zeros_like(value) if "lora_B" in name else value for name, value in start.items()}

    change(kept, nothing)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"adapter_model.safetensors: the adapter changes nothing"):
        adapter.apply(copy.deepcopy(model), kept)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_tensors_that_do_not_fit_are_counted_and_named(kept, model):
    layer = "base_model.model.transformer.blocks.0.attention.out"

    def spoil(tensors):
        del tensors[f"{layer}.lora_B.weight"]
        tensors["base_model.model.transformer.blocks.9.ffn.up.lora_A.weight"] = torch.zeros(3, 32)
        tensors["base_model.model.heads.image.final.out.weight"] = torch.zeros(2, 2)
        return tensors

    change(kept, spoil)
    with pytest.raises(ValueError) as raised:
        adapter.apply(copy.deepcopy(model), kept)
    for part in (
        "1 missing: transformer.blocks.0.attention.out.lora_B.weight",
        "1 extra: transformer.blocks.9.ffn.up.lora_A.weight",
        "1 misshaped: heads.image.final.out.weight (2, 2) instead of (6, 32)",
    ):
        assert part in str(raised.value)


def test_without_any_layer_it_is_no_adapter(kept, model):
    change(kept, lambda tensors: {name: value for name, value in tensors.items() if ".lora_" not in name})
    with pytest.raises(ValueError, match="not an adapter: none of its"):
        adapter.apply(copy.deepcopy(model), kept)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type 'LOHA' is not supported"),
        ({"use_dora": True}, "use_dora True is not supported"),
        ({"rank_pattern": {"qkv": 4}}, "rank_pattern .* is not supported"),
        ({"r": None}, "not the configuration of a LoRA adapter"),
    ],
)
def test_other_kinds_of_adapter_are_refused(kept, model, fields, message):
    path = kept / adapter.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(ValueError, match=message):
        adapter.apply(copy.deepcopy(model), kept)


def test_a_folder_without_an_adapter_is_named(tmp_path, model):
    with pytest.raises(ValueError, match=r"adapter_config.json: no such file; an adapter is a folder with"):
        adapter.apply(model, tmp_path)
