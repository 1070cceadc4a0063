"""Losses against values computed by hand."""
import math

import pytest
import torch

from lib.losses import dice, segmentation_loss, weighted_cross_entropy


def two_pixels(margins: list[float]) -> torch.Tensor:
    """Logits (1, 2, 1, pixels) whose object probability is the sigmoid of each margin."""
    margin = torch.tensor(margins, dtype=torch.float64)
    return torch.stack([torch.zeros_like(margin), margin])[None, :, None, :]


def test_cross_entropy_is_the_mean_weighted_by_each_pixels_class():
    logits, target = two_pixels([0.0, math.log(3)]), torch.tensor([[[0, 1]]])
    by_hand = (0.9 * math.log(2) + 1.1 * math.log(4 / 3)) / (0.9 + 1.1)   # p = 1/2 and 3/4
    assert weighted_cross_entropy(logits, target).item() == pytest.approx(by_hand, rel=1e-12)


def test_dice_is_summed_over_samples_and_classes():
    logits, target = two_pixels([0.0, math.log(3)]), torch.tensor([[[0, 1]]])
    background = 1 - (2 * 0.5 + 1e-6) / (0.75 + 1 + 1e-6)                 # p = 1/2, 1/4 of the truth 1, 0
    thing = 1 - (2 * 0.75 + 1e-6) / (1.25 + 1 + 1e-6)                     # p = 1/2, 3/4 of the truth 0, 1
    assert dice(logits, target).item() == pytest.approx(background + thing, rel=1e-12)
    twice = dice(logits.repeat(2, 1, 1, 1), target.repeat(2, 1, 1))
    assert twice.item() == pytest.approx(2 * (background + thing), rel=1e-12)


def test_dice_of_an_empty_mask_is_finite():
    logits, target = two_pixels([-50.0, -50.0]), torch.tensor([[[0, 0]]])
    assert dice(logits, target).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("dice_weight", [0.0, 0.1, 1.0])
def test_the_loss_weighs_both(dice_weight):
    logits, target = two_pixels([0.3, -0.7]), torch.tensor([[[0, 1]]])
    expected = (1 - dice_weight) * weighted_cross_entropy(logits, target) + dice_weight * dice(logits, target)
    assert segmentation_loss(logits, target, dice_weight).item() == pytest.approx(expected.item(), rel=1e-12)
