"""ARC is a plain convolution at angle 0, and turns its kernel at others."""
import math

import pytest
import torch
import torch.nn.functional as F

from lib.arc import MAX_ANGLE_RAD, AdaptiveRotatedConv

RING = [0, 1, 2, 5, 8, 7, 6, 3]  # the outer taps, clockwise from the top left


@pytest.fixture
def conv():
    torch.manual_seed(0)
    return AdaptiveRotatedConv(4, 5).double().eval()


def rotation(conv, degrees: float) -> torch.Tensor:
    return conv.rotation(torch.tensor([[math.radians(degrees)]], dtype=torch.float64))[0, 0]


def still(conv, scale: float):
    """Makes the router answer angle 0 and the given scale, whatever it sees."""
    torch.nn.init.zeros_(conv.router.angle.weight)
    torch.nn.init.zeros_(conv.router.scale.weight)
    torch.nn.init.constant_(conv.router.scale.bias, scale)


def test_at_angle_0_and_scale_1_it_is_a_plain_convolution(conv):
    still(conv, scale=100.0)   # sigmoid(100) = 1
    x = torch.randn(3, 4, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight[0], padding=1), rtol=1e-12, atol=1e-12)


def test_scale_multiplies_the_kernel(conv):
    still(conv, scale=0.0)     # sigmoid(0) = 1/2
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight[0], padding=1) / 2, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("degrees", [-40, -17, 0, 25, 40])
def test_each_new_tap_is_a_weighted_mean_of_old_ones(conv, degrees):
    matrix = rotation(conv, degrees)
    torch.testing.assert_close(matrix.sum(1), torch.ones(9, dtype=torch.float64))
    assert matrix[4].tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0]   # the centre stays


@pytest.mark.parametrize("degrees", [-40, -17, 25, 40])
def test_it_commutes_with_quarter_turns(conv, degrees):
    """A rotation looks the same from every side of the square."""
    turn = torch.rot90(torch.arange(9).view(3, 3)).flatten()
    matrix = rotation(conv, degrees)
    torch.testing.assert_close(matrix[turn][:, turn], matrix)


def test_forty_degrees_each_way_by_hand(conv):
    cos, sin = math.cos(math.radians(40)), math.sin(math.radians(40))
    kernel = torch.zeros(9, dtype=torch.float64)
    kernel[1] = 1.0                                             # a weight in the top middle
    positive, negative = rotation(conv, 40) @ kernel, rotation(conv, -40) @ kernel
    assert positive[1].item() == pytest.approx(cos - cos * sin)
    assert positive[0].item() == pytest.approx(1 - (cos - sin))  # the corner takes most of it
    assert positive[3].item() == pytest.approx(sin - cos * sin)
    assert negative[1].item() == pytest.approx(cos - cos * sin)  # and −40° is the mirror image of 40°
    mirror = [2, 1, 0, 5, 4, 3, 8, 7, 6]
    torch.testing.assert_close(negative, positive[mirror])


def test_the_weight_moves_along_the_ring(conv):
    """The further it turns, the more of the top middle's weight stands in the next corner."""
    kernel = torch.zeros(9, dtype=torch.float64)
    kernel[RING[1]] = 1.0
    arrived = [(rotation(conv, degrees) @ kernel)[RING[0]].item() for degrees in (0, 10, 20, 30, 40)]
    assert arrived[0] == 0 and arrived == sorted(arrived) and arrived[-1] > 0.8


def test_the_router_stays_within_its_ranges(conv):
    scale, angle_rad = conv.router(1e6 * torch.randn(8, 4, 6, 6, dtype=torch.float64))
    assert scale.shape == angle_rad.shape == (8, 1)
    assert ((scale >= 0) & (scale <= 1)).all() and (angle_rad.abs() <= MAX_ANGLE_RAD).all()


def test_several_kernels_add_up():
    torch.manual_seed(0)
    conv = AdaptiveRotatedConv(3, 3, kernels=2).double().eval()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    scale, angle_rad = conv.router(x)
    for i in range(2):
        expected = 0
        for k in range(2):
            turned = conv.rotation(angle_rad)[i, k] @ conv.weight[k].flatten(2).unsqueeze(-1)
            expected = expected + scale[i, k] * F.conv2d(x[i:i + 1], turned.view(3, 3, 3, 3), padding=1)
        torch.testing.assert_close(conv(x)[i:i + 1], expected)


def test_autocast_does_not_round_what_turns_the_kernel():
    torch.manual_seed(0)
    conv, scale, angle_rad = AdaptiveRotatedConv(8, 8), torch.rand(2, 1), torch.tensor([[0.5], [-0.3]])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conv.rotated_weight(scale, angle_rad), conv.rotated_weight(scale, angle_rad).float())
    torch.testing.assert_close(conv.rotated_weight(scale, angle_rad).double(),
                               conv.double().rotated_weight(scale.double(), angle_rad.double()))
