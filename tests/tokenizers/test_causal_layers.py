"""The layers against torch's own convolutions, and the inverse STFT against the signal it came from."""

import pytest
import torch
import torch.nn.functional as F

from latentlm.tokenizers.causal import CausalConv, CausalState, ConvNeXtBlock, DownConv, UpConv
from latentlm.tokenizers.spectral import InverseSTFT, SpectralFeatures


def steps(num: int, channels: int) -> torch.Tensor:
    return torch.randn(2, num, channels, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("groups", [1, 6])
def test_causal_conv_is_a_left_padded_convolution(groups):
    layer = CausalConv(6, 12, 7, groups)
    x = steps(9, 6)
    expected = F.conv1d(F.pad(x.transpose(1, 2), (6, 0)), layer.weight, layer.bias, groups=groups).transpose(1, 2)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("stride", [2, 5])
def test_down_conv_is_a_strided_convolution(stride):
    layer = DownConv(6, 4, stride)
    x = steps(stride * 5, 6)
    padded = F.pad(x.transpose(1, 2), (stride, 0))
    expected = F.conv1d(padded, layer.weight, layer.bias, stride=stride).transpose(1, 2)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("stride", [2, 5])
def test_up_conv_is_a_transposed_convolution_without_its_tail(stride):
    layer = UpConv(6, 4, stride)
    torch.nn.init.normal_(layer.bias)
    x = steps(7, 6)
    expected = F.conv_transpose1d(x.transpose(1, 2), layer.weight, layer.bias, stride=stride)[..., :-stride]
    torch.testing.assert_close(layer(x), expected.transpose(1, 2))


@pytest.mark.parametrize("layer", [CausalConv(6, 6, 1), CausalConv(6, 6, 4), DownConv(6, 6, 3), UpConv(6, 6, 3)])
def test_pieces_equal_the_whole(layer):
    x, stream = steps(12, 6), CausalState()
    pieces = torch.cat([layer(x[:, a:b], stream) for a, b in ((0, 3), (3, 9), (9, 12))], 1)
    torch.testing.assert_close(pieces, layer(x))


def test_two_streams_do_not_meet():
    layer = ConvNeXtBlock(6, 7, 0.5)
    x = steps(8, 6)
    first, second = CausalState(), CausalState()
    layer(x[:, :4], first)
    layer(x[:, 4:] * 3, second)
    torch.testing.assert_close(layer(x[:, 4:], first), layer(x)[:, 4:])


@pytest.mark.parametrize(("window", "hop"), [(64, 16), (40, 20), (60, 10)])
def test_inverse_stft_returns_the_signal_behind_by_its_delay(window, hop):
    """Fed with the true spectra of causal frames, the head gives back the samples, `window - hop` late."""
    signal = torch.randn(2, 20 * hop, generator=torch.Generator().manual_seed(0)) * 0.1
    frames = F.pad(signal, (window - hop, 0)).unfold(1, window, hop) * torch.hann_window(window)
    spectrum = torch.fft.rfft(frames)
    head = InverseSTFT(4, window, hop)
    head.norm, head.proj = torch.nn.Identity(), torch.nn.Identity()
    output = head(torch.cat((spectrum.abs().clamp(min=1e-9).log(), spectrum.angle()), -1))
    delay = window - hop
    torch.testing.assert_close(output[:, delay:], signal[:, :-delay], atol=1e-5, rtol=0)


def test_spectral_frames_end_with_their_own_hop():
    features = SpectralFeatures(40, 10)
    silence = torch.zeros(1, 100)
    click = silence.clone()
    click[0, 35] = 1.0  # inside hop 3: frames 3, 4, 5, 6 see it
    changed = (features(click) != features(silence)).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == [3, 4, 5, 6]
