"""Intersection and union of every sample, the field's metrics, and the one evaluation loop."""
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lib.update import autocast
from transforms import normalize

PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def count_pixels(logits: Tensor, target: Tensor) -> Tensor:
    """Intersection, union and object size of each sample, in pixels: (B, 2, S, S), (B, S, S) -> (B, 3) int64.

    A pixel is predicted to be of the object when its class-1 logit is the larger one.
    """
    predicted, truth = (logits[:, 1] > logits[:, 0]).flatten(1), target.bool().flatten(1)
    return torch.stack([(predicted & truth).sum(1), (predicted | truth).sum(1), truth.sum(1)], dim=1)


def compute_metrics(intersection: np.ndarray, union: np.ndarray) -> dict[str, Any]:
    """mIoU, oIoU and Prec@X in percent, from the pixel counts of all samples, both (samples,) int64.

    The IoU of a sample without any pixel, true or predicted, is 0. mIoU is the mean of the samples' IoUs,
    oIoU the sum of intersections over the sum of unions, Prec@X the share of samples with IoU ≥ X.
    """
    iou = intersection / np.maximum(union, 1)
    return {
        "mIoU": 100 * float(iou.mean()),
        "oIoU": 100 * float(intersection.sum() / max(1, union.sum())),
        "precision": {str(x): 100 * float((iou >= x).mean()) for x in PRECISION_THRESHOLDS},
    }


def format_metrics(metrics: dict[str, Any]) -> str:
    """The lines that the published test scripts print."""
    lines = ["Mean IoU is %.2f" % metrics["mIoU"]]
    lines += ["    precision@%s = %.2f" % (x, value) for x, value in metrics["precision"].items()]
    return "\n".join([*lines, "    overall IoU = %.2f" % metrics["oIoU"]])


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Iterable[dict[str, Tensor]], device: torch.device,
             amp: str = "off") -> Tensor:
    """Pixel counts of every sample in `batches` (see `data.dataset`), the model in evaluation mode meanwhile.

    -> (samples, 4) int64 on `device`: index, intersection, union, object size. One process's share only;
    `utils.gather_rows` brings the shares together. `amp` names the precision (see `lib.update.autocast`).
    """
    was_training = model.training
    model.eval()
    rows = [torch.empty(0, 4, dtype=torch.int64, device=device)]
    for batch in batches:
        image, token_ids, token_mask, target, index = (
            batch[key].to(device, non_blocking=True) for key in ("image", "token_ids", "token_mask", "target", "index"))
        with autocast(device, amp):
            logits = model(normalize(image), token_ids, token_mask)
        rows.append(torch.cat([index[:, None], count_pixels(logits, target)], dim=1))
    model.train(was_training)
    return torch.cat(rows)
