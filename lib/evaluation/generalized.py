"""Metrics of data sets with sentences that refer to nothing: gRefCOCO's (Liu et al., GRES, CVPR 2023).

A prediction with fewer pixels than a threshold means that there is no target. I and U are the pixels in the
intersection and in the union of prediction and truth:

    truth      predicted   IoU                I, U added                counts as
    no target  none        1                  0, 0                      true positive
    no target  some        0                  0, pixels predicted       false negative
    target     none        0                  0, U                      false positive
    target     some        I / U, 0 if U = 0  I, U                      true negative
"""
from typing import Any

import numpy as np

from lib.evaluation.metrics import compute_metrics, format_metrics
from lib.evaluation.text_tables import STYLES

THRESHOLDS = (0.7, 0.8, 0.9)


def generalized_metrics(counts: np.ndarray, no_target: np.ndarray, fewest_px: int) -> dict[str, Any]:
    """gIoU, cIoU, N-acc, T-acc and Prec@X in percent.

    `counts` are the samples' `lib.evaluation.metrics.COUNTS`, (samples, 5) integers; `no_target`, (samples,) bool,
    marks samples whose truth is empty by design; `fewest_px` is the threshold. gIoU is the mean of the IoUs above, cIoU
    the sum of I over the sum of U. N-acc is the share of the samples without a target that are recognised as such,
    T-acc the same for samples with a target; each is 0 if there are no such samples. Prec@X is the share of samples
    with a target whose IoU is at least X.
    """
    intersection, union, object_px = counts[:, :3].T
    predicted_px = intersection + union - object_px   # |P| = |I| + |U| − |T|
    none = predicted_px < fewest_px
    added_i = np.where(no_target | none, 0, intersection)
    added_u = np.where(no_target, np.where(none, 0, predicted_px), union)
    iou = np.where(no_target & none, 1.0, added_i / np.maximum(added_u, 1))
    true_positive, false_negative = int((no_target & none).sum()), int((no_target & ~none).sum())
    false_positive, true_negative = int((~no_target & none).sum()), int((~no_target & ~none).sum())
    return {
        "gIoU": 100 * float(iou.mean()),
        "cIoU": 100 * float(added_i.sum() / max(1, added_u.sum())),
        "N_acc": 100 * true_positive / max(1, true_positive + false_negative),
        "T_acc": 100 * true_negative / max(1, true_negative + false_positive),
        "precision": {str(x): 100 * float((iou[~no_target] >= x).sum() / max(1, (~no_target).sum()))
                      for x in THRESHOLDS},
        "no_target_pixels": fewest_px,
        "counts": {"true_positive": true_positive, "false_negative": false_negative,
                   "false_positive": false_positive, "true_negative": true_negative}}


def all_metrics(counts: np.ndarray, no_target: np.ndarray, fewest_px: int) -> dict[str, Any]:
    """`lib.evaluation.metrics.compute_metrics`, and `generalized` where a sample has no target."""
    metrics = compute_metrics(counts)
    return {**metrics, "generalized": generalized_metrics(counts, no_target, fewest_px)} if no_target.any() else metrics


def format_all(metrics: dict[str, Any]) -> str:
    """The lines of the original test scripts, followed by those of the generalised metrics if there are any."""
    lines = [format_metrics(metrics)]
    return "\n".join([*lines, format_generalized(metrics["generalized"])] if "generalized" in metrics else lines)


def format_generalized(metrics: dict[str, Any]) -> str:
    """The lines of the log for `generalized_metrics`."""
    lines = ["gIoU is %.2f, cIoU is %.2f" % (metrics["gIoU"], metrics["cIoU"]),
             "    N-acc = %.2f, T-acc = %.2f (no target: fewer than %d pixels)"
             % (metrics["N_acc"], metrics["T_acc"], metrics["no_target_pixels"])]
    lines += ["    precision@%s = %.2f of samples with a target" % (x, value)
              for x, value in metrics["precision"].items()]
    return "\n".join(lines)


def format_generalized_table(rows: list[tuple[str, dict[str, Any]]], style: str) -> str:
    """The papers' table in 'latex' or 'markdown'; each row is (name, `generalized_metrics`)."""
    cells = [[name, *("%.2f" % value for value in (
        row["gIoU"], row["cIoU"], *row["precision"].values(), row["N_acc"], row["T_acc"]))] for name, row in rows]
    return STYLES[style](["Method", "gIoU", "cIoU", *(f"Prec@{x}" for x in THRESHOLDS), "N-acc", "T-acc"], cells)
