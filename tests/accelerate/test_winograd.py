"""The decoder's convolutions on CPUs compute what `F.conv2d` computes, with a quarter of the multiplications."""
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib.accelerate import accelerate
from lib.accelerate.arc import FEW_TILES
from lib.accelerate.winograd import WinogradConv2d, convolve, tiles, transforms
from lib.arc import AdaptiveRotatedConv

SIZES = [(4, 4), (1, 1), (3, 9), (8, 6), (13, 17)]   # whole tiles, less than one, and rests on either side


def winograd_conv(in_channels: int, out_channels: int, bias: bool = False) -> WinogradConv2d:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)
    conv.__class__ = WinogradConv2d
    conv.begin()
    return conv


def transformed(weight: torch.Tensor) -> torch.Tensor:
    """(O, I, 3, 3) -> (36, I, O)"""
    return (transforms(weight.dtype)[1] @ weight.flatten(2).movedim(2, 0).flatten(1)).view(36, *weight.shape[:2]).mT


@pytest.mark.parametrize("size", SIZES)
def test_it_equals_conv2d_in_values_and_gradients(size):
    torch.manual_seed(0)
    x = torch.randn(3, 5, *size, dtype=torch.float64, requires_grad=True)
    conv = winograd_conv(5, 7, bias=True).double()
    weighting = torch.randn(3, 7, *size, dtype=torch.float64)
    results = []
    for y in (conv(x), F.conv2d(x, conv.weight, conv.bias, padding=1)):
        assert y.shape == (3, 7, *size)
        results.append((y, *torch.autograd.grad((y * weighting).sum(), (x, conv.weight, conv.bias))))
    torch.testing.assert_close(results[0], results[1], rtol=1e-11, atol=1e-12)


def test_each_sample_may_have_its_own_weight():
    torch.manual_seed(0)
    x, weights = torch.randn(2, 3, 9, 5, dtype=torch.float64), torch.randn(2, 4, 3, 3, 3, dtype=torch.float64)
    expected = torch.cat([F.conv2d(x[i:i + 1], weights[i], padding=1) for i in range(2)])
    both = torch.stack([transformed(weight) for weight in weights], dim=1)   # (36, B, I, O)
    torch.testing.assert_close(convolve([x], both), expected, rtol=1e-11, atol=1e-12)


def test_several_maps_are_joined_along_their_channels():
    torch.manual_seed(0)
    maps = [torch.randn(2, width, 5, 9, dtype=torch.float64, requires_grad=True) for width in (2, 3)]
    conv = winograd_conv(5, 4).double()
    results = [(y, *torch.autograd.grad(y.square().sum(), maps)) for y in (conv(*maps), conv(torch.cat(maps, dim=1)))]
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize(("amp", "tolerance"), [(None, 4e-6), (torch.bfloat16, 2e-2)])
def test_rounding_stays_small(amp, tolerance):
    """Relative errors: 2 · 10⁻⁷ and 3 · 10⁻³ are a plain convolution's."""
    torch.manual_seed(0)
    conv, x = winograd_conv(256, 32), torch.randn(1, 256, 16, 16).relu()
    exact = F.conv2d(x.double(), conv.weight.double(), padding=1)
    with torch.autocast("cpu", dtype=amp, enabled=amp is not None):
        y = conv(x)
    assert y.dtype == (amp or torch.float32)
    assert (y - exact).norm() / exact.norm() < tolerance


def test_training_may_follow_an_evaluation():
    conv, x = winograd_conv(2, 3), torch.randn(1, 2, 8, 8)
    with torch.inference_mode():
        conv(x)
    conv(x).sum().backward()
    assert conv.weight.grad.abs().sum() > 0


def test_it_is_a_conv2d_to_checkpoints():
    assert {name: value.shape for name, value in winograd_conv(2, 3).state_dict().items()} == {"weight": (3, 2, 3, 3)}


def test_the_transformed_weight_is_kept_until_the_weight_changes():
    torch.manual_seed(0)
    conv, x = winograd_conv(2, 3), torch.randn(1, 2, 8, 8)
    with torch.no_grad():
        first, kept = conv(x), conv.derived_weight.value
        assert torch.equal(conv(x), first) and conv.derived_weight.value is kept
        conv.weight.mul_(2)
        torch.testing.assert_close(conv(x), 2 * first)
        other = copy.deepcopy(conv)
        other.weight = nn.Parameter(conv.weight / 2)
        torch.testing.assert_close(other(x), first)
    conv(x).sum().backward()
    assert conv.derived_weight.value is None and conv.weight.grad is not None


@pytest.mark.parametrize("kernels", [1, 2])
def test_a_rotated_convolution_gives_the_same_either_way(kernels):
    """Large maps go by tiles, small ones do not."""
    torch.manual_seed(0)
    conv = accelerate(AdaptiveRotatedConv(3, 4, kernels).double().eval(), torch.device("cpu"))
    x = torch.randn(2, 3, 28, 28, dtype=torch.float64)
    scale, angle_rad = torch.rand(2, kernels).double(), torch.tensor([[-0.3, 0.1], [0.5, -0.6]])[:, :kernels].double()
    conv.router.forward = lambda _: (scale, angle_rad)
    assert tiles(28, 28) > FEW_TILES >= tiles(20, 20)
    for part in (x, x[..., :20, :20]):
        expected = [F.conv2d(sample[None], weight, padding=1)
                    for sample, weight in zip(part, conv.rotated_weight(scale, angle_rad), strict=True)]
        torch.testing.assert_close(conv(part), torch.cat(expected), rtol=1e-11, atol=1e-12)


def test_in_bfloat16_only_taps_and_kernel_are_rounded_not_what_turns_them():
    torch.manual_seed(0)
    conv = accelerate(AdaptiveRotatedConv(32, 32), torch.device("cpu"))
    conv.weight.data = conv.weight.data.bfloat16().float()
    scale, angle_rad = torch.rand(2, 1), torch.tensor([[0.5], [-0.3]])
    exact = conv.double().combine(torch.eye(9), scale, angle_rad, torch.float64).bfloat16()
    kernel = conv.float().combine(torch.eye(9), scale, angle_rad, torch.bfloat16)
    assert (kernel == exact).float().mean() > 0.99   # a matrix rounded to bfloat16 would leave a half
