"""Padding and shifting in one copy."""
import pytest
import torch

from lib.accelerate.windows import pad_and_shift, unshift_and_crop


@pytest.mark.parametrize(("side", "padded", "shift"),
                         [(7, 8, 2), (8, 8, 2), (7, 8, 0), (8, 8, 0), (1, 8, 4), (3, 8, 4)])
def test_padding_and_shifting_at_once_are_pad_and_roll(side, padded, shift):
    """Values and gradients are equal, there and back; also for a map smaller than the shift."""
    x = torch.randn(2, side, 8, 3, dtype=torch.float64, requires_grad=True)
    padding = torch.randn(3, dtype=torch.float64, requires_grad=True)
    weighting = torch.randn(2, padded, 8, 3, dtype=torch.float64)
    rolled = torch.cat([x, padding.expand(2, padded - side, 8, 3)], dim=1).roll((-shift, -shift), (1, 2))
    results = []
    for there, back in ((pad_and_shift(x, padding, padded, 8, shift), lambda y: unshift_and_crop(y, side, 8, shift)),
                        (rolled, lambda y: y.roll((shift, shift), (1, 2))[:, :side])):
        again = back(there * weighting)
        loss = (there * weighting).square().sum() + (again ** 3).sum() + 0 * padding.sum()
        results.append((there, again, *torch.autograd.grad(loss, (x, padding))))
    torch.testing.assert_close(results[0], results[1])
