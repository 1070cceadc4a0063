"""Training losses. Shapes: B batch, S S' the image's height and width, 2 classes."""
import torch
import torch.nn.functional as F
from torch import Tensor

CLASS_WEIGHTS = (0.9, 1.1)  # background, object


def weighted_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over pixels, weighted by class. logits (B, 2, S, S'), target (B, S, S') int64 of 0 and 1 -> scalar."""
    # The tensor is filled on the device: copying one from the host would wait for the device.
    weight = torch.cat([logits.new_full((1,), number) for number in CLASS_WEIGHTS])
    return F.cross_entropy(logits, target, weight=weight)


def dice(logits: Tensor, target: Tensor, smooth: float = 1e-6) -> Tensor:
    """1 − Dice coefficient of each sample and class, *summed* over both as in RMSIN; arguments as above."""
    probability = logits.softmax(dim=1).flatten(2)                                       # (B, 2, S·S')
    classes = torch.arange(logits.shape[1], device=target.device)   # F.one_hot would read the target's values
    truth = (target[:, None] == classes[:, None, None]).flatten(2).to(probability.dtype)
    overlap = (probability * truth).sum(-1)
    return (1 - (2 * overlap + smooth) / (probability.sum(-1) + truth.sum(-1) + smooth)).sum()


def segmentation_loss(logits: Tensor, target: Tensor, dice_weight: float) -> Tensor:
    """(1 − dice_weight) · cross-entropy + dice_weight · Dice; the weight is 0.1 for RMSIN and 0 for LAVT."""
    cross_entropy = weighted_cross_entropy(logits, target)
    dice_loss = dice(logits, target) if dice_weight else 0.0
    return (1 - dice_weight) * cross_entropy + dice_weight * dice_loss
