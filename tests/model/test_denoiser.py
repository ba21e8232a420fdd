"""The network as sampling runs it gives what the network gives, at every evaluation, in every variant."""

import pytest
import torch
from torch import nn

from latentlm.config import DiffusionConfig, DiffusionHeadConfig
from latentlm.diffusion.schedule import DiffusionProcess
from latentlm.model.heads import diffusion_sampler as module
from latentlm.model.heads.diffusion import cached_plan
from latentlm.model.heads.diffusion_network import DiffusionNetwork
from latentlm.model.heads.diffusion_sampler import Denoiser

TOLERANCE = {torch.float32: (1e-5, 1e-4), torch.float64: (1e-12, 1e-10), torch.bfloat16: (0.1, 0.05)}


def build(**options) -> DiffusionNetwork:
    torch.manual_seed(0)
    head = DiffusionNetwork(24, 6, DiffusionHeadConfig(num_layers=2, width=32, **options))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return head.eval()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 5, 16])
@pytest.mark.parametrize("several", [1, 3, 7])
@pytest.mark.parametrize("options", [{}, {"norm_weight": True, "norm_eps": 1e-3}])
@torch.inference_mode()
def test_equals_the_head(options, several, rows, dtype, monkeypatch):
    """Seven evaluations, whose modulations come one, three (and a rest) or seven at a time."""
    monkeypatch.setattr(module, "MODULATION_ROWS", several * rows)
    head = build(**options).to(dtype)
    condition, embeddings = torch.randn(rows, 32).to(dtype), torch.randn(7, 1, 32).to(dtype)
    denoiser = Denoiser(head, rows, 7)
    assert denoiser.several == several
    for _ in range(2):  # the second latent finds the buffers of the first
        evaluations = denoiser.modulations(condition, embeddings)
        for embedding in embeddings:
            x = head.latent_in(torch.randn(rows, 6).to(dtype))
            expected = head.predict(x, head.modulations(condition + embedding))
            found = denoiser.predict(x, next(evaluations))
            atol, rtol = TOLERANCE[dtype]
            torch.testing.assert_close(found, expected, atol=atol, rtol=rtol)
        assert next(evaluations, None) is None


@torch.inference_mode()
def test_layouts_of_a_few_numbers_of_rows_are_kept(monkeypatch):
    made = []
    monkeypatch.setattr(module, "Denoiser", lambda head, rows, num: made.append(rows) or Denoiser(head, rows, num))
    head = build()
    process = DiffusionProcess.from_config(DiffusionConfig())
    sampler = module.DiffusionSampler(head, cached_plan(process, "ddim", 2))

    def draw(rows: int) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(row) for row in range(rows)]
        return sampler(torch.ones(rows, 24), None, None, None, generators)

    first = draw(5)
    for rows in (6, 5, 6, 7, 8):
        draw(rows)
    assert torch.equal(draw(5), first)
    assert made == [5, 6, 7, 8]
    draw(9)  # instead of 6, unused for longest
    draw(6)
    assert made == [5, 6, 7, 8, 9, 6]
    assert len(sampler.denoisers) == module.MOST_LAYOUTS


@torch.inference_mode()
def test_a_row_of_zeros_has_a_norm():
    head = build()
    denoiser = Denoiser(head, 4, 1)
    condition, embedding = torch.randn(4, 32), torch.zeros(1, 1, 32)
    found = denoiser.predict(torch.zeros(4, 32), next(denoiser.modulations(condition, embedding)))
    torch.testing.assert_close(found, head.predict(torch.zeros(4, 32), head.modulations(condition)))


@torch.inference_mode()
def test_layers_that_are_more_than_one_matrix_are_called():
    head = build()
    for layer in (head.blocks[0].ffn, head.final):
        name = "up" if layer is head.blocks[0].ffn else "modulation"
        setattr(layer, name, Doubled(getattr(layer, name)))
    denoiser = Denoiser(head, 8, 2)
    condition, embeddings = torch.randn(8, 32), torch.randn(2, 1, 32)
    x = torch.randn(8, 32)
    for embedding, modulations in zip(embeddings, denoiser.modulations(condition, embeddings), strict=True):
        expected = head.predict(x, head.modulations(condition + embedding))
        torch.testing.assert_close(denoiser.predict(x, modulations), expected, atol=1e-5, rtol=1e-4)


class Doubled(nn.Module):
    """A layer with an adapter: its matrix is not all that it does."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.layer(x)
