"""Losses against values computed by hand; the text of `--loss`, read and spelled out."""
import math

import pytest
import torch

from lib.loss_table import LOSSES, Loss, Term, loss_of_share, parse_loss, spelled_out
from lib.losses import dice, focal, segmentation_loss, weighted_cross_entropy
from utils import UserError


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


def test_focal_counts_a_sure_pixel_less():
    """p of each pixel's own class is 1/2 and 3/4; its weight 1 − alpha and alpha times (1 − p)^gamma."""
    logits, target = two_pixels([0.0, math.log(3)]), torch.tensor([[[0, 1]]])
    by_hand = (0.6 * 0.5 ** 2 * math.log(2) + 0.4 * 0.25 ** 2 * math.log(4 / 3)) / 2
    assert focal(logits, target, alpha=0.4, gamma=2).item() == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.027, 0.1, 0.18, 0.3, 1.0])
def test_a_share_of_dice_gives_the_original_sum_bit_for_bit(share):
    torch.manual_seed(0)
    logits, target = 3 * torch.randn(2, 2, 8, 8), torch.randint(2, (2, 8, 8))
    dice_loss = dice(logits, target) if share else 0.0
    expected = (1 - share) * weighted_cross_entropy(logits, target) + share * dice_loss
    assert torch.equal(segmentation_loss(logits, target, loss_of_share(share)), expected)


def test_a_loss_is_the_weighted_sum_of_its_parts():
    logits, target = two_pixels([0.3, -0.7]), torch.tensor([[[0, 1]]])
    expected = (1.1 * weighted_cross_entropy(logits, target) + 0.1 * dice(logits, target)
                + 2 * focal(logits, target, alpha=0.25, gamma=1))
    found = segmentation_loss(logits, target, "ce:1.1,dice:0.1,focal:2:gamma=1")
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_of_the_table_takes_a_gradient_in_every_pixel(name):
    torch.manual_seed(0)
    logits, target = torch.randn(2, 2, 4, 4, requires_grad=True), torch.randint(2, (2, 4, 4))
    loss = segmentation_loss(logits, target, name)
    loss.backward()
    assert loss.shape == () and logits.grad.isfinite().all() and logits.grad.all()


# The text of the flag

@pytest.mark.parametrize(("text", "spelled"), [
    ("ce", "ce:1"), (" ce:0.90 , dice:0.1", "ce:0.9,dice:0.1"), ("dice:1,ce:0", "dice:1"),
    ("focal:2", "focal:2:alpha=0.25:gamma=2"), ("focal:1e-3:gamma=1.5", "focal:0.001:alpha=0.25:gamma=1.5")])
def test_equal_losses_have_equal_texts(text, spelled):
    assert spelled_out(text) == spelled == spelled_out(spelled)


@pytest.mark.parametrize(("share", "text"), [(0.0, "ce:1"), (0.1, "ce:0.9,dice:0.1"), (1.0, "dice:1")])
def test_the_recipes_losses_as_texts(share, text):
    assert loss_of_share(share) == text


def test_a_new_loss_is_a_function_and_a_row(monkeypatch):
    monkeypatch.setitem(LOSSES, "new", Loss("losses:focal", {"alpha": 1.0, "gamma": 0}))
    assert parse_loss("new:3:gamma=2") == (Term("new", 3.0, (("alpha", 1.0), ("gamma", 2))),)
    with pytest.raises(UserError, match=r"gamma of new must be a whole number, but is '2\.5'"):
        parse_loss("new:3:gamma=2.5")


@pytest.mark.parametrize(("text", "message"), [
    ("", "'' is none of the losses ce, dice, focal; --loss has the form ce:0.9,dice:0.1"),
    ("ce,hinge", "'hinge' is none of the losses"),
    ("ce:0", "'ce:0' has no weight above 0"),
    ("ce:1,dice:1,ce:2", "'ce:1,dice:1,ce:2' has ce twice"),
    ("ce:much", "the weight of ce must be a number from 0 to 1e6, but is 'much'"),
    ("ce:-1", "the weight of ce must be"), ("ce:nan", "the weight of ce must be"), ("ce:inf", "the weight of ce must"),
    ("ce:1:gamma=2", "'gamma' is no setting of the loss ce, which has no settings"),
    ("focal:1:beta=2", "'beta' is no setting of the loss focal, which has the settings alpha, gamma"),
    ("focal:1:gamma", "gamma of focal must be a number")])
def test_another_text_is_refused_in_one_line(text, message):
    with pytest.raises(UserError) as refused:
        parse_loss(text)
    assert message in str(refused.value) and "\n" not in str(refused.value)
