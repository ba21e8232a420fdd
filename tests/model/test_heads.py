"""What every head promises to the model, the engine and adapters; and that they ask for nothing else."""

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL.Image import Image as PILImage
from small import random_latents, small_model
from torch import nn

from latentlm.config import AdapterConfig, DiffusionConfig, DiffusionHeadConfig, HeadConfig, MixtureHeadConfig
from latentlm.data.packing import DocumentEncoder, pack
from latentlm.generation.pipeline import Pipeline
from latentlm.generation.request import Request
from latentlm.modalities.image import Image
from latentlm.modalities.speech import Speech
from latentlm.model import adapter
from latentlm.model.heads import HEADS, Head, SamplerOptions, build_head
from latentlm.model.latentlm import LatentLM
from latentlm.training.ema import EMA
from latentlm.types import Document, Text

D, C = 24, 6
CONFIGS = {
    "diffusion": DiffusionHeadConfig(num_layers=2, width=32),
    "mixture": MixtureHeadConfig(components=3, num_layers=2, width=32),
}
OPTIONS = SamplerOptions("dpm++2m", 4)


@pytest.fixture(params=CONFIGS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def head(kind) -> Head:
    """A head none of whose weights are zero."""
    torch.manual_seed(0)
    built = build_head(D, C, CONFIGS[kind], DiffusionConfig())
    built.initialise()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return built.eval()


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_every_kind_is_tested_here():
    assert set(CONFIGS) == set(HEADS)


def test_the_loss_is_a_sum_over_latents_in_fp32(head):
    hidden, clean = torch.randn(70, D), torch.randn(70, C)
    loss = head.loss(hidden, clean, torch.Generator().manual_seed(0))
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert head.loss(hidden[:0], clean[:0], torch.Generator().manual_seed(0)).item() == 0.0
    many = head.loss(hidden.repeat(100, 1), clean.repeat(100, 1), torch.Generator().manual_seed(1))
    assert many.item() / 100 == pytest.approx(loss.item(), rel=0.3)


def test_initialise_hangs_on_the_global_seed_alone(head, kind):
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        other = build_head(D, C, CONFIGS[kind], DiffusionConfig())
        torch.manual_seed(4)
        other.initialise()
        drawn.append(other.state_dict())
    torch.manual_seed(4)
    head.initialise()  # whatever its weights were
    for state in (drawn[1], head.state_dict()):
        assert all(torch.equal(value, drawn[0][name]) for name, value in state.items())


@torch.no_grad()
def test_a_probe_sees_every_weight(head):
    hidden = torch.randn(2, D)
    before = head.probe(hidden)
    assert before.shape == (2, C)
    for name, parameter in head.named_parameters():
        backup = parameter.clone()
        parameter += 0.1 * torch.randn_like(parameter)
        assert not torch.equal(head.probe(hidden), before), name
        parameter.copy_(backup)
    assert torch.equal(head.probe(hidden), before)


@pytest.mark.parametrize("guided", [[], [1, 3, 4], [0, 1, 2, 3, 4]])
@torch.inference_mode()
def test_a_batch_of_unlike_requests_equals_each_alone(head, guided):
    hidden, nulls = torch.randn(5, D), torch.randn(5, D)
    scale = torch.tensor([[2.0], [0.5], [3.0], [1.5], [2.0]])
    sampler = head.sampler(OPTIONS)
    places = torch.tensor(guided)
    options = (nulls[places], None if len(guided) == 5 else places, scale[places]) if guided else (None, None, None)
    together = sampler(hidden, *options, generators(range(5)))
    assert together.shape == (5, C)
    assert together.dtype == torch.float32
    for row in range(5):
        one = slice(row, row + 1)
        options = (nulls[one], None, scale[one]) if row in guided else (None, None, None)
        torch.testing.assert_close(
            together[one], sampler(hidden[one], *options, generators([row])), atol=1e-4, rtol=1e-4
        )
    assert not torch.allclose(together[:1], sampler(hidden[:1], *options, generators([7])))


@torch.inference_mode()
def test_matrices_laid_out_for_many_steps_change_nothing(head):
    """By the tenth step with eight rows every sampler runs packed weights where this machine has any."""
    sampler, hidden = head.sampler(OPTIONS), torch.randn(8, D)
    first, *_, last = (sampler(hidden, None, None, None, generators(range(8))) for _ in range(10))
    torch.testing.assert_close(last, first, atol=1e-4, rtol=1e-4)


def built(tokenizers, config: HeadConfig) -> LatentLM:
    """A random model that never ends a span by itself: both answers of its text head are 0, and argmax goes on."""
    model = small_model(tokenizers, config)
    with torch.no_grad():
        model.text_head.weight[[model.special.eod, model.special.proceed]] = 0.0
    return model


def documents(tokenizers):
    encoder = DocumentEncoder(tokenizers["text"])
    asked = Text("ab", condition=True, loss=False)
    return [
        encoder(Document((asked, Image(random_latents(4, 6))))),
        encoder(Document((asked, Speech(random_latents(7, 5))))),
    ]


def losses(model, tokenizers) -> dict[str, torch.Tensor]:
    batch = pack(documents(tokenizers), {"image": 6, "speech": 5})
    return model(batch, torch.Generator().manual_seed(0))


REQUESTS = [
    Request("ab", "image", guidance=3.0, steps=3, seed=1),
    Request("c", "speech", guidance=1.0, steps=2, seed=2, max_latents=5),
    Request("ab", "image", guidance=1.0, steps=3, seed=3),
    Request("ab", "image", guidance=0.5, steps=3, seed=4),
    Request("hello", "speech", guidance=2.0, steps=3, seed=5, max_latents=3),
]


def sampled(model, tokenizers, requests) -> list[torch.Tensor]:
    """Pixels or samples of each answer."""
    pipeline, found = Pipeline(model.eval(), tokenizers), []
    for output in pipeline.generate_batch(requests):
        media = output.segments[0].content
        found.append(torch.from_numpy(np.array(media)).float() if isinstance(media, PILImage) else media.samples)
    assert all(answer.numel() for answer in found)
    return found


def test_in_a_model_each_request_is_answered_as_alone(tokenizers, kind):
    model = built(tokenizers, CONFIGS[kind])
    together = sampled(model, tokenizers, REQUESTS)
    for request, answer in zip(REQUESTS, together, strict=True):
        (alone,) = sampled(model, tokenizers, [request])
        torch.testing.assert_close(answer, alone, atol=1.0 if request.to == "image" else 1e-4, rtol=0)


def test_an_average_of_the_weights_samples_as_its_own(tokenizers, kind):
    model = built(tokenizers, CONFIGS[kind])
    before = sampled(model, tokenizers, REQUESTS[:1])[0]
    average = EMA(model, 0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    moved = sampled(model, tokenizers, REQUESTS[:1])[0]
    with average.applied(model):
        assert torch.equal(sampled(model, tokenizers, REQUESTS[:1])[0], before)
    assert torch.equal(sampled(model, tokenizers, REQUESTS[:1])[0], moved)
    assert not torch.equal(moved, before)


def test_an_adapter_in_a_head_is_kept_and_merged(tokenizers, kind, tmp_path):
    pytest.importorskip("peft")
    model = built(tokenizers, CONFIGS[kind])
    live = copy.deepcopy(model)
    adapter.insert(live, AdapterConfig(rank=2, targets=("heads",), full=()), "small")
    with torch.no_grad():
        for parameter in live.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    adapter.save(live, live.state_dict(), tmp_path, adapter.start_of(model))
    merged = copy.deepcopy(model)
    adapter.apply(merged, tmp_path)
    for name, loss in losses(live, tokenizers).items():
        torch.testing.assert_close(losses(merged, tokenizers)[name], loss, rtol=1e-4, atol=1e-4)
    assert not torch.isclose(losses(merged, tokenizers)["image"], losses(model, tokenizers)["image"])
    ours, theirs = (sampled(m, tokenizers, REQUESTS[:3])[1] for m in (live, merged))
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


class Echo(Head):
    """The least that a head can be: it predicts one linear map of the hidden state."""

    def __init__(self, width: int, latent_dim: int):
        super().__init__()
        self.latent_dim = latent_dim
        self.map = nn.Linear(width, latent_dim)

    def loss(self, hidden, clean, generator):
        return (self.map(hidden) - clean).square().sum()

    def sampler(self, options):
        return lambda hidden, null_hidden, guided, scale, generators: self.map(hidden).float()

    def initialise(self):
        nn.init.ones_(self.map.weight)

    def probe(self, hidden):
        return self.map(hidden)


def test_model_engine_and_adapters_ask_a_head_for_nothing_but_the_contract(tokenizers, monkeypatch, tmp_path):
    monkeypatch.setitem(HEADS, "mixture", lambda width, latent_dim, config, diffusion: Echo(width, latent_dim))
    model = built(tokenizers, MixtureHeadConfig())
    assert isinstance(model.heads["image"], Echo)
    sum(losses(model, tokenizers).values()).backward()
    assert model.heads["speech"].map.weight.grad.abs().sum() > 0
    assert len(sampled(model, tokenizers, REQUESTS)) == len(REQUESTS)
    pytest.importorskip("peft")
    live = copy.deepcopy(model)
    adapter.insert(live, AdapterConfig(rank=2, targets=("heads",), full=()), "small")
    with torch.no_grad():
        for parameter in live.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    adapter.save(live, live.state_dict(), tmp_path, adapter.start_of(model))
    adapter.apply(model, tmp_path)
