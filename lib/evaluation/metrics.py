"""Pixel counts of each sample, the metrics computed from them, and the evaluation loop.

Shapes: B batch, H W height and width in pixels, S × S at the network's input size.
"""
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.accelerate import autocast
from lib.accelerate.threads import FixedThreads, ThreadCount
from transforms import network_inputs

PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
BOUNDARY_SHARE = 0.02  # width of a mask's boundary along its contour, as a share of the image's diagonal
COUNTS = ("intersection", "union", "object_px", "boundary_intersection", "boundary_union")  # of a sample, in pixels


def predict(logits: Tensor) -> Tensor:
    """(B, 2, H, W) -> (B, H, W) bool, true where the object's logit is the larger one."""
    return logits[:, 1] > logits[:, 0]


def count_pixels(predicted: Tensor, truth: Tensor) -> Tensor:
    """The `COUNTS` of each sample: masks (B, H, W), bool or of 0 and 1 -> (B, 5) int64.

    The last two counts concern the masks' boundaries alone (Cheng et al., Boundary IoU, CVPR 2021, equation 1).
    """
    predicted, truth = predicted.bool(), truth.bool()
    predicted_edge, true_edge = boundary(predicted), boundary(truth)
    counted = (predicted & truth, predicted | truth, truth, predicted_edge & true_edge, predicted_edge | true_edge)
    return torch.stack([mask.flatten(1).sum(1) for mask in counted], dim=1)


def boundary(mask: Tensor) -> Tensor:
    """The pixels of a mask within 2 % of the image's diagonal from its contour or the image's border.

    (B, H, W) bool -> same. Distance is counted in steps to one of the eight neighbours of a pixel; the
    limit is at least one step.
    """
    depth = max(1, round(BOUNDARY_SHARE * math.hypot(*mask.shape[1:])))
    inner = F.pad(mask, (depth,) * 4)   # after the loops: the pixels whose square of side 2·depth + 1 is in the mask
    for axis in (1, 2):
        width = 1
        while width < 2 * depth + 1:   # inner[i] is true if `width` pixels from i on are in the mask
            step = min(width, 2 * depth + 1 - width)
            length = inner.shape[axis] - step
            inner = inner.narrow(axis, 0, length) & inner.narrow(axis, step, length)
            width += step
    return mask & ~inner


def compute_metrics(counts: np.ndarray) -> dict[str, Any]:
    """mIoU, oIoU, boundary IoU and Prec@X in percent, from the `COUNTS` of all samples, (samples, 5) integers.

    mIoU is the mean of the samples' IoUs, oIoU the sum of intersections over the sum of unions, Prec@X the share of
    samples with IoU ≥ X, and boundary IoU the mean over samples. The IoU of a sample with an empty union is 0.
    """
    intersection, union, _, boundary_intersection, boundary_union = counts.T
    iou = intersection / np.maximum(union, 1)
    return {
        "mIoU": 100 * float(iou.mean()),
        "oIoU": 100 * float(intersection.sum() / max(1, union.sum())),
        "boundary_IoU": 100 * float((boundary_intersection / np.maximum(boundary_union, 1)).mean()),
        "precision": {str(x): 100 * float((iou >= x).mean()) for x in PRECISION_THRESHOLDS},
    }


def warning_of_empty_predictions(counts: np.ndarray) -> str:
    """A warning if no pixel of any sample is predicted to belong to the object, else ''.

    `counts` are the `COUNTS` of all samples, (samples, 5) integers.
    """
    intersection, union, object_px = counts.T[:3]
    if (intersection - object_px + union).any() or not object_px.any():   # pixels are predicted, or none exist
        return ""
    return (f"WARNING: all {len(counts)} predictions are empty: the network marks no pixel as the object. It has not "
            "learnt enough yet (more --epochs, a higher --lr), or the checkpoint's weights were not trained for this")


def format_metrics(metrics: dict[str, Any]) -> str:
    """The lines that the original test scripts print."""
    lines = ["Mean IoU is %.2f" % metrics["mIoU"]]
    lines += ["    precision@%s = %.2f" % (x, value) for x, value in metrics["precision"].items()]
    return "\n".join([*lines, "    overall IoU = %.2f" % metrics["oIoU"]])


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Iterable[dict[str, Tensor]], device: torch.device, amp: str = "off",
             observe: Callable[[list[int], Tensor], None] | None = None,
             threads: ThreadCount | FixedThreads | None = None) -> Tensor:
    """Pixel counts of every sample in `batches` (see `data.dataset`), computed by the model in evaluation mode.

    Returns (samples, 6) int64 on `device`: index and `COUNTS` of this process's share; `distributed.gather_rows` joins
    the shares. `amp` names the precision (see `lib.accelerate.autocast`). `observe` is called for each batch with the
    samples' indices and logits (B, 2, S, S). `threads` may change their number.
    """
    was_training, threads = model.training, threads or FixedThreads()
    model.eval()
    rows = [torch.empty(0, 1 + len(COUNTS), dtype=torch.int64, device=device)]
    for batch in batches:
        target, index = (batch[key].to(device, non_blocking=True) for key in ("target", "index"))
        with threads.step(), autocast(device, amp):
            logits = model(*network_inputs(batch, device))
        rows.append(torch.cat([index[:, None], count_pixels(predict(logits), target)], dim=1))
        if observe:
            observe(batch["index"].tolist(), logits)
    model.train(was_training)
    return torch.cat(rows)
