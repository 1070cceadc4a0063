"""Training losses; `lib/loss_table.py` lists them. Shapes: B batch, S S' the image's height and width, 2 classes."""
import torch
import torch.nn.functional as F
from torch import Tensor

from lib.loss_table import LOSSES, parse_loss

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


def focal(logits: Tensor, target: Tensor, alpha: float, gamma: float) -> Tensor:
    """Mean over pixels of the focal loss (Lin et al., ICCV 2017), torchvision's; logits and target as above.

    `alpha` is the weight of the object, 1 − alpha that of the background; a pixel whose class has the probability p
    counts (1 − p)^gamma times as much as in cross-entropy.
    """
    # Imported here, because torchvision is slow to import, and few runs need it.
    from torchvision.ops import sigmoid_focal_loss
    return sigmoid_focal_loss(logits[:, 1] - logits[:, 0], target.to(logits.dtype), alpha, gamma, reduction="mean")


def segmentation_loss(logits: Tensor, target: Tensor, loss: str) -> Tensor:
    """The sum of the parts of `--loss`, each times its weight; logits and target as above."""
    terms = [term.weight * LOSSES[term.name].load()(logits, target, **dict(term.settings))
             for term in parse_loss(loss)]
    return sum(terms[1:], start=terms[0])
