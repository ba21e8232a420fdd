"""The packed twin of a diffusion head: the same values, the same weights, for the rows it was packed for and others."""

import pytest
import torch

from latentlm.config import DiffusionHeadConfig
from latentlm.generation.packed import FEWEST_ROWS, PackedLinear, pack_head
from latentlm.hardware import multiplies_bf16
from latentlm.model.heads import DiffusionHead


@pytest.fixture
def head() -> DiffusionHead:
    torch.manual_seed(0)
    head = DiffusionHead(24, 6, DiffusionHeadConfig(num_layers=2, width=32))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(std=0.2)
    return head.eval()


packs = pytest.mark.skipif(
    not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()), reason="torch without MKL"
)
native_bf16 = pytest.mark.skipif(not multiplies_bf16(), reason="bf16 is emulated here")


@packs
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=native_bf16)])
@pytest.mark.parametrize("rows", [FEWEST_ROWS, 16, 64])
@torch.inference_mode()
def test_packed_equals_plain(head, rows, dtype):
    head = head.to(dtype)
    twin = pack_head(head, rows)
    assert isinstance(twin.blocks[0].ffn.up, PackedLinear)
    for M in (rows, rows + 3):
        noisy, conditioning = torch.randn(M, 6).to(dtype), torch.randn(M, 32).to(dtype)
        torch.testing.assert_close(twin.denoise(noisy, conditioning), head.denoise(noisy, conditioning))


@packs
def test_packing_leaves_the_head_alone(head):
    before = {name: value.clone() for name, value in head.state_dict().items()}
    twin = pack_head(head, 16)
    assert not any(isinstance(module, PackedLinear) for module in head.modules())
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    assert twin.latent_in is head.latent_in
    assert twin.blocks[1].modulation.weight is head.blocks[1].modulation.weight


def test_few_rows_and_other_precisions_stay_plain(head):
    assert pack_head(head, FEWEST_ROWS - 1) is head
    double = head.double()
    assert pack_head(double, 64) is double


def test_emulated_bf16_stays_plain(head, monkeypatch):
    monkeypatch.setattr("latentlm.generation.packed.multiplies_bf16", lambda: False)
    half = head.bfloat16()
    assert pack_head(half, 64) is half
