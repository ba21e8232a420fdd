"""The parts of the model against torch's own: the norm and its gradient, the rotation, the mask."""

import pytest
import torch
import torch.nn.functional as F

from latentlm.config import TransformerConfig
from latentlm.model.layers import RMSNorm, UnitRMS, rotary, rotate
from latentlm.model.transformer import additive


@pytest.mark.parametrize("weight", [False, True])
def test_the_norm_is_torch_s_forward_and_backward(weight):
    torch.manual_seed(0)
    norm = RMSNorm(24, 1e-2, weight=weight)
    x = torch.randn(2, 5, 24)
    x[0, 0] = 0  # a row without length has only eps
    gradient = torch.randn_like(x)
    theirs, ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    F.rms_norm(theirs, (24,), norm.weight, 1e-2).backward(gradient)
    expected = None if norm.weight is None else norm.weight.grad.clone()
    norm.zero_grad()
    norm(ours).backward(gradient)
    torch.testing.assert_close(ours.grad, theirs.grad)
    with torch.no_grad():
        torch.testing.assert_close(norm(x), F.rms_norm(x, (24,), norm.weight, 1e-2))
    if weight:
        torch.testing.assert_close(norm.weight.grad, expected)
    assert torch.autograd.gradcheck(lambda x: UnitRMS.apply(x, 1e-2), x.double().requires_grad_())


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_pair_turns_by_the_angle_of_its_position(interleaved):
    """As complex numbers: (a + ib)·e^{iθ}."""
    torch.manual_seed(0)
    config = TransformerConfig(rope_interleaved=interleaved)
    positions = torch.tensor([[0, 1, 7], [3, 0, 1]])
    x = torch.randn(2, 5, 3, 8)
    found = rotate(x, *rotary(positions, 8, config), interleaved)
    theta = positions[:, None, :, None] * 10000.0 ** -(torch.arange(0, 8, 2) / 8)
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
    turned = torch.complex(a, b) * torch.polar(torch.ones_like(theta), theta)
    expected = torch.view_as_real(turned).flatten(-2) if interleaved else torch.cat((turned.real, turned.imag), dim=-1)
    torch.testing.assert_close(found, expected)


def test_an_additive_mask_is_in_the_dtype_of_the_products():
    mask = torch.tensor([[True, False]])
    x = torch.zeros(1)
    assert additive(mask, x).tolist() == [[0.0, -torch.inf]]
    assert additive(mask, x.double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert additive(mask, x).dtype == torch.bfloat16
