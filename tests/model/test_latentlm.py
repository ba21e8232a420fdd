"""The model's contracts: packed = separate, no leak from the future or from neighbours, cached = uncached."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from margins import seed
from small import random_latents, small_model
from torch import nn

import latentlm.model.layers
from latentlm.checkpoint import modality_specs
from latentlm.config import DiffusionHeadConfig, ModelConfig
from latentlm.data.packing import DocumentEncoder, Packer, pack
from latentlm.modalities.image import Image
from latentlm.modalities.speech import Speech
from latentlm.model.heads.diffusion_network import DiffusionNetwork
from latentlm.model.latentlm import LatentLM
from latentlm.types import IGNORE, Document, PackedBatch, Text

DIMS = {"image": 6, "speech": 5}


@pytest.fixture(scope="module")
def documents(tokenizers):
    encoder = DocumentEncoder(tokenizers["text"])
    given = {"condition": True, "loss": False}
    return [
        encoder(document)
        for document in (
            Document((Text("one", **given), Image(random_latents(4, 6, 1)))),
            Document((Speech(random_latents(5, 5, 2), **given), Text("two words"))),
            Document((Text("say", **given), Speech(random_latents(7, 5, 3)))),
            Document((Text("a page "), Image(random_latents(4, 6, 4)), Text(" of both"))),
        )
    ]


def test_packed_equals_separate(model, documents):
    packer = Packer(rows=2, length=40, latent_dims=DIMS)
    assert all(packer.add(document) for document in documents)
    packed = model.hidden(packer.batch()).flatten(0, 1)
    for document, (_, row, start) in zip(documents, packer.placed, strict=True):
        alone = model.hidden(pack([document], DIMS))[0]
        torch.testing.assert_close(packed[row * 40 + start :][: len(document)], alone, atol=1e-5, rtol=1e-4)


def test_losses_packed_equal_the_sum_of_separate(model, documents):
    """Text and end losses; the diffusion losses draw other noise when packed, so they are compared elsewhere."""
    generator = torch.Generator().manual_seed(0)
    together = model(pack(documents, DIMS), generator)
    for name in ("text", "end"):
        parts = sum(model(pack([d], DIMS), generator)[name] for d in documents)
        torch.testing.assert_close(together[name], parts, atol=1e-3, rtol=1e-4)


def test_the_future_does_not_change_the_past(model, documents):
    batch = pack([documents[3]], DIMS)
    before = model.hidden(batch)[0]
    cut = 6
    batch.ids[0, cut:] = 65
    batch.latents["image"].values[batch.latents["image"].index >= cut] += 1.0
    after = model.hidden(batch)[0]
    torch.testing.assert_close(after[:cut], before[:cut], atol=0, rtol=0)
    assert not torch.allclose(after[cut:], before[cut:])


def single_targets(batch: PackedBatch, name: str) -> Iterator[tuple[PackedBatch, int]]:
    """The batch with one target of the loss `name` alone, and the position at which its answer is an input."""
    if name in batch.latents:
        span = batch.latents[name]
        for number, index in enumerate(span.index.tolist()):
            alone = replace(span, target=torch.arange(len(span.target)) == number)
            yield replace(batch, latents={name: alone}), index
        return
    targets = getattr(batch, f"{name}_targets")
    for place in (targets[0] != IGNORE).nonzero()[:, 0].tolist():
        alone = targets.where(torch.arange(targets.shape[1]) == place, IGNORE)
        yield replace(batch, **{f"{name}_targets": alone}), place + 1


@torch.no_grad()
def test_latents_and_features_are_embedded_at_their_positions(tokenizers):
    text, specs = tokenizers["text"], modality_specs(tokenizers)
    specs["speech"] = replace(specs["speech"], feature_dim=7)
    config = ModelConfig(transformer=small_model(tokenizers).config.transformer)
    model = LatentLM(config, text.vocab_size, text.special, specs)
    x, values, features = torch.randn(6, 32), torch.randn(3, 5), torch.randn(2, 7)
    index, places = torch.tensor([4, 0, 3]), torch.tensor([0, 3])
    expected = x.clone()
    for row, value in zip(index, values, strict=True):
        expected[row] = model.embed_latents["speech"](value)
    for row, value in zip(places, features, strict=True):
        expected[row] += model.embed_features["speech"](value)
    for pad in (False, True):
        torch.testing.assert_close(model.embed_span(x, "speech", values, index, features, places, pad), expected)


@pytest.mark.parametrize(("name", "number"), [("image", 3), ("speech", 2), ("text", 3), ("end", 2)])
def test_a_loss_hangs_on_all_inputs_before_its_answer_and_on_no_other(tokenizers, documents, name, number):
    model, inputs = small_model(tokenizers), []
    model.transformer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    answers = list(single_targets(pack([documents[number]], DIMS), name))
    assert len(answers) > 3
    for batch, answer in answers:
        loss = model(batch, torch.Generator().manual_seed(0))[name]
        (gradient,) = torch.autograd.grad(loss, inputs.pop())
        reached = gradient[0].abs().sum(1) > 0
        assert reached[:answer].all()
        assert not reached[answer:].any()


def test_every_latent_is_learnt_at_several_times_each_with_its_own_noise_from_one_pass(tokenizers, documents):
    model = small_model(tokenizers)
    head, passes, times, noisy = model.heads["image"], [], [], []
    model.transformer.register_forward_pre_hook(lambda *_: passes.append(1))
    head.timestep.register_forward_pre_hook(lambda _, args: times.append(args[0][:4]))
    head.latent_in.register_forward_pre_hook(lambda _, args: noisy.append(args[0][:4]))
    batch = pack([documents[0]], DIMS)
    model(batch, torch.Generator().manual_seed(0))
    (t,), (x,), clean = times, noisy, batch.latents["image"].values[:, None]
    assert len(passes) == 1
    assert t.shape == (4, 4)
    assert t.unique().numel() == 16
    alpha, sigma = head.process.alpha(t)[..., None], head.process.sigma(t)[..., None]
    noise = ((x - alpha * clean) / sigma).flatten(0, 1)
    assert torch.pdist(noise).min() > 0.1
    assert noise.std().item() == pytest.approx(1.0, abs=0.3)


def test_a_neighbour_in_the_row_changes_nothing(model, documents):
    first = pack([documents[0], documents[1]], DIMS)
    second = pack([documents[0], documents[2]], DIMS)
    length = len(documents[0])
    torch.testing.assert_close(model.hidden(first)[0, :length], model.hidden(second)[0, :length], atol=0, rtol=0)


@pytest.mark.parametrize(
    "options", [{}, {"num_kv_heads": 2}, {"qk_norm": True, "qkv_bias": True}, {"rope_interleaved": True}]
)
def test_cached_equals_uncached(tokenizers, documents, options):
    model = small_model(tokenizers, **options).eval()
    document = documents[3]
    batch = pack([document], DIMS)
    whole = model.hidden(batch)[0]
    x = model.embed_tokens(batch.ids)
    for name, span in batch.latents.items():
        x = x.flatten(0, 1).index_copy(0, span.index, model.embed_latents[name](span.values)).view_as(x)
    cache = model.transformer.new_cache(1, len(document))
    steps = []
    for start, stop in ((0, 5), *((i, i + 1) for i in range(5, len(document)))):
        steps.append(model.transformer.extend(x[:, start:stop], cache.open(stop - start))[0])
        cache.lengths[0] = stop
    torch.testing.assert_close(torch.cat(steps), whole, atol=1e-5, rtol=1e-4)


def test_ragged_rows_of_the_cache_equal_each_alone(model, documents):
    lengths = [9, 5, 13]
    x = torch.randn(3, 14, 32, generator=torch.Generator().manual_seed(0))
    cache = model.transformer.new_cache(3, 16)
    model.transformer.extend(x[:, :13], cache.open(13))
    cache.lengths = list(lengths)
    new = x[:, 13:]
    together = model.transformer.extend(new, cache.open(1))
    for row, length in enumerate(lengths):
        alone = model.transformer.new_cache(1, 16)
        model.transformer.extend(x[row : row + 1, :length], alone.open(length))
        alone.lengths = [length]
        single = model.transformer.extend(new[row : row + 1], alone.open(1))
        torch.testing.assert_close(together[row], single[0], atol=1e-5, rtol=1e-4)


def test_the_cache_refuses_to_outgrow_itself(model):
    cache = model.transformer.new_cache(1, 4)
    with pytest.raises(AssertionError, match="5 positions in a cache of 4"):
        cache.open(5)


def test_every_loss_reaches_every_part(tokenizers, documents):
    model = small_model(tokenizers)
    sums = model(pack(documents, DIMS), torch.Generator().manual_seed(0))
    sum(sums.values()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize("tile", [4, 64])
def test_rounding_up_to_tiles_changes_shapes_alone(tokenizers, documents, monkeypatch, tile):
    """Losses and gradients are those of the exact sizes; what meets a matrix of a head comes in whole tiles."""
    found = []
    for size in (1, tile):
        monkeypatch.setattr(latentlm.model.layers, "TILE", size)
        model, rows = small_model(tokenizers), set()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 8)
        for head in (model.heads["image"], model.heads["speech"]):
            head.latent_in.register_forward_pre_hook(lambda _, x, rows=rows: rows.add(len(x[0])))
        sums = model(pack(documents, DIMS), torch.Generator().manual_seed(0))
        sum(sums.values()).backward()
        assert rows
        assert all(number % size == 0 for number in rows)
        found.append((sums, {name: value.grad for name, value in model.named_parameters()}))
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)


def test_a_fresh_head_predicts_zero(tokenizers):
    from latentlm.checkpoint import modality_specs

    text = tokenizers["text"]
    model = LatentLM(small_model(tokenizers).config, text.vocab_size, text.special, modality_specs(tokenizers))
    out = model.heads["image"](torch.randn(3, 6), torch.tensor([0, 500, 999]), torch.randn(3, 32))
    assert out.shape == (3, 6)
    assert torch.count_nonzero(out) == 0


def test_timestep_embedding_tells_998_from_1000_in_bf16(tokenizers):
    head = small_model(tokenizers).heads["image"].bfloat16()
    near, far = head.timestep(torch.tensor([998.39, 1000.0]))
    assert not torch.equal(near, far)


@pytest.mark.parametrize(("depth", "bound"), [(3, 0.015), (12, 0.025)])
def test_a_head_in_bf16_stays_near_the_head_in_fp32(depth, bound, margin):
    torch.manual_seed(seed())
    head = DiffusionNetwork(64, 16, DiffusionHeadConfig(num_layers=depth))
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    noisy, t, hidden = torch.randn(500, 16), torch.randint(0, 1000, (500,)), torch.randn(500, 64)
    with torch.no_grad():
        exact = head(noisy, t, hidden)
        half = head.bfloat16()(noisy.bfloat16(), t, hidden.bfloat16()).float()
    margin("distance", (half - exact).norm() / exact.norm(), at_most=bound)


def test_mean_targets_are_an_option(tokenizers, documents):
    from latentlm.config import DiffusionConfig

    model = small_model(tokenizers)
    batch = pack(documents, DIMS)
    for span in batch.latents.values():
        span.means = span.values + 1.0
    sampled = model(batch, torch.Generator().manual_seed(0))["image"]
    model.config = model.config.model_copy(update={"diffusion": DiffusionConfig(target="mean")})
    assert not torch.isclose(model(batch, torch.Generator().manual_seed(0))["image"], sampled)


def test_a_modality_may_have_a_head_of_its_own(tokenizers, model):
    transformer = model.config.transformer

    def build(**heads):
        config = ModelConfig.model_validate({"transformer": transformer, "head": model.config.head, "heads": heads})
        return LatentLM(config, tokenizers["text"].vocab_size, tokenizers["text"].special, modality_specs(tokenizers))

    found = build(image={"num_layers": 1, "width": 48})
    assert len(found.heads["image"].blocks) == 1
    assert found.heads["image"].latent_in.out_features == 48
    assert found.heads["speech"].latent_in.out_features == transformer.width
    with pytest.raises(ValueError, match=r"model\.heads\.video: the model has no such modality"):
        build(video={"width": 48})
