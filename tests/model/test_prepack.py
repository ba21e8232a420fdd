"""Packed modules: the same values, the same weights, for the rows they were packed for and for others."""

import pytest
import torch
from torch import nn

from latentlm.config import TransformerConfig
from latentlm.hardware import multiplies_bf16
from latentlm.model import prepack as module
from latentlm.model.prepack import FEWEST_ROWS, PATIENCE, PackedLinear, Prepacker, packed, prepack
from latentlm.model.transformer import Transformer

packs = pytest.mark.skipif(
    not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()), reason="torch without MKL"
)
native_bf16 = pytest.mark.skipif(not multiplies_bf16(), reason="bf16 is emulated here")


@packs
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=native_bf16)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [FEWEST_ROWS, 16, 64])
@pytest.mark.parametrize("at_home", [True, False])
@torch.inference_mode()
def test_packed_equals_plain(at_home, rows, bias, dtype, monkeypatch):
    monkeypatch.setattr(module, "prefers_mkl", lambda: at_home)
    torch.manual_seed(0)
    layer = nn.Linear(24, 40, bias=bias).to(dtype)
    twin = packed(layer, rows)
    assert isinstance(twin, PackedLinear)
    assert twin.by_mkl == (at_home and dtype == torch.float32)
    for shape in ((rows, 24), (rows, 1, 24), (rows + 3, 24), (2, 5, 24)):
        x = torch.randn(shape).to(dtype)
        torch.testing.assert_close(twin(x), layer(x))


@packs
@torch.inference_mode()
def test_a_packed_transformer_decodes_as_the_plain_one():
    torch.manual_seed(0)
    plain = Transformer(TransformerConfig(width=32, num_layers=2, num_heads=4, qkv_bias=True, qk_norm=True)).eval()
    twin = prepack(plain, 6)
    assert sum(isinstance(part, PackedLinear) for part in twin.modules()) == 8
    assert not any(isinstance(part, PackedLinear) for part in plain.modules())
    assert twin.norm.weight is plain.norm.weight
    assert twin.blocks[1].attention.qkv.weight.data_ptr() == plain.blocks[1].attention.qkv.weight.data_ptr()
    caches = [plain.new_cache(6, 8), twin.new_cache(6, 8)]
    for width in (3, 1, 1):
        x = torch.randn(6, width, 32)
        a, b = (model.extend(x, cache.open(width)) for model, cache in zip((plain, twin), caches, strict=True))
        torch.testing.assert_close(a, b)
        for cache in caches:
            cache.lengths = [length + width for length in cache.lengths]


@packs
def test_a_twin_is_made_once_a_number_of_rows_has_come_to_stay():
    layers = nn.Sequential(nn.Linear(8, 8))
    packing = Prepacker(layers)
    assert all(packing(16) is layers for _ in range(PATIENCE - 1))
    twin = packing(16)
    assert isinstance(twin[0], PackedLinear)
    assert packing(16) is twin
    assert packing(12) is layers


@packs
def test_layouts_are_kept_for_the_numbers_of_rows_that_recur(monkeypatch):
    monkeypatch.setattr(module, "MOST_LAYOUTS", 2)
    packing = Prepacker(nn.Sequential(nn.Linear(8, 8)))
    twins = {rows: [packing(rows) for _ in range(PATIENCE)][-1] for rows in (16, 18)}
    for _ in range(3 * PATIENCE):  # a request that comes and goes
        assert all(packing(rows) is twins[rows] for rows in (16, 18, 16))
    assert [packing(20) for _ in range(PATIENCE)][-1] is not packing.module
    assert packing(16) is twins[16]  # 18 was unused for longest
    assert packing(18) is packing.module


@packs
def test_laying_out_takes_a_part_of_the_time_whatever_comes(monkeypatch):
    made = []
    monkeypatch.setattr(module, "prepack", lambda layers, rows: made.append(rows) or layers)
    packing = Prepacker(nn.Sequential(nn.Linear(8, 8)))
    for step in range(100 * PATIENCE):
        packing(16 + step % 7)
        assert len(packing.twins) <= module.MOST_LAYOUTS
    assert len(made) <= 100


@packs
def test_what_would_take_much_memory_twice_stays_plain(monkeypatch):
    layers = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    monkeypatch.setattr(module, "MOST_BYTES", 2 * 8 * 8 * 4 - 1)
    packing = Prepacker(layers)
    assert all(packing(16) is layers for _ in range(2 * PATIENCE))


@pytest.mark.parametrize(("layers", "rows"), [(nn.Linear(8, 8), FEWEST_ROWS - 1), (nn.Linear(8, 8).double(), 16)])
def test_no_twin_is_made_where_nothing_can_be_packed(layers, rows):
    packing = Prepacker(nn.Sequential(layers))
    assert all(packing(rows) is packing.module for _ in range(2 * PATIENCE))


def test_few_rows_and_other_precisions_stay_plain():
    layer = nn.Linear(8, 8)
    assert packed(layer, FEWEST_ROWS - 1) is layer
    double = layer.double()
    assert packed(double, 64) is double


def test_emulated_bf16_stays_plain(monkeypatch):
    monkeypatch.setattr(module, "multiplies_bf16", lambda: False)
    half = nn.Linear(8, 8).bfloat16()
    assert packed(half, 64) is half
