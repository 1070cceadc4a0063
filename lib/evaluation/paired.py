"""Two results of the same samples compared pair by pair: differences of metrics with their intervals."""
from typing import Any

import numpy as np

from lib.evaluation.metrics import compute_metrics
from lib.evaluation.tables import Sample, counts_of, ratio_intervals
from utils import UserError


def pair(first: dict[str, Any], second: dict[str, Any]) -> list[tuple[Sample, Sample]]:
    """Both results of each (ref_id, sent_id), in the first one's order. Raises `UserError` unless all match."""
    by_key = [{(sample["ref_id"], sample["sent_id"]): sample for sample in results["samples"]}
              for results in (first, second)]
    only = [sorted(map(str, ours.keys() - theirs.keys())) for ours, theirs in (by_key, by_key[::-1])]
    if only[0] or only[1]:
        raise UserError(f"the results are of different samples: {len(only[0])} are only in the first, {len(only[1])} "
                        f"only in the second (split {first.get('split')} and {second.get('split')}), for one (ref_id, "
                        f"sent_id) {(only[0] or only[1])[0]}")
    return [(sample, by_key[1][key]) for key, sample in by_key[0].items()]


def compare(pairs: list[tuple[Sample, Sample]]) -> dict[str, Any]:
    """{metric: {"first", "second", "difference", "interval"}} in percent; intervals by drawing images anew.

    A difference of means is the mean of the samples' differences. For overall IoU, a ratio, the same images are drawn
    for both (its interval is that of the difference linearised at the estimate, the delta method).
    """
    counts = [counts_of(samples) for samples in zip(*pairs, strict=True)]
    metrics = [compute_metrics(part) for part in counts]
    images = [sample["image_id"] for sample, _ in pairs]
    one = np.ones(len(pairs))
    changes = {"mIoU": np.subtract(*(ratio(part, 0) for part in counts[::-1])),
               "boundary_IoU": np.subtract(*(ratio(part, 3) for part in counts[::-1]))}
    # U·d(ΣI/ΣU) = dI − (ΣI/ΣU)·dU: with it, the mean over samples is the ratio's difference.
    terms = [(part[:, 0] - part[:, 0].sum() / max(1, part[:, 1].sum()) * part[:, 1]) / max(1e-9, part[:, 1].mean())
             for part in counts]
    changes["oIoU"] = terms[1] - terms[0] + (metrics[1]["oIoU"] - metrics[0]["oIoU"]) / 100
    names = ("mIoU", "oIoU", "boundary_IoU")
    intervals = ratio_intervals(100 * np.stack([changes[name] for name in names]), np.stack([one] * len(names)), images)
    return {name: {"first": metrics[0][name], "second": metrics[1][name],
                   "difference": metrics[1][name] - metrics[0][name], "interval": interval}
            for name, interval in zip(names, intervals, strict=True)}


def ratio(counts: np.ndarray, column: int) -> np.ndarray:
    """IoU of each sample, from the column of its intersection; the union follows."""
    return counts[:, column] / np.maximum(counts[:, column + 1], 1)
