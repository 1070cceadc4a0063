"""Metrics of groups of samples, with intervals: per category, kind of expression, object size, sentence length.

A sample is a dict as in `test.py --results`: ids, `category`, `sentence`, the entries of `describe_sample`, and its
`COUNTS` (see `lib.evaluation.metrics`). Metrics and their intervals are in percent.
"""
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from lib.evaluation import NO_TARGET_PIXELS
from lib.evaluation.expressions import KINDS, kind_of, words_of
from lib.evaluation.generalized import all_metrics
from lib.evaluation.metrics import COUNTS, PRECISION_THRESHOLDS, compute_metrics
from lib.evaluation.text_tables import STYLES

RESAMPLES, CONFIDENCE = 2000, 0.95
AREAS = {"under 0.1 %": 0.001, "0.1 to 1 %": 0.01, "1 to 10 %": 0.1, "over 10 %": 1.0}  # upper bounds, of the image
LENGTHS = {"1 to 3": 3, "4 to 6": 6, "7 to 9": 9, "10 or more": np.inf}                # upper bounds, words
GROUPINGS = {"category": None, "kind": KINDS, "object_size": ("empty", *AREAS), "words": tuple(LENGTHS)}

Sample = dict[str, Any]


def describe_sample(sentence: str, object_px: int, image_px: int) -> dict[str, str]:
    """The groups that a sample belongs to besides its category: `kind`, `object_size`, `words`."""
    size = next(name for name, most in AREAS.items() if object_px <= most * image_px) if object_px else "empty"
    length = next(name for name, most in LENGTHS.items() if len(words_of(sentence)) <= most)
    return {"kind": kind_of(sentence), "object_size": size, "words": length}


def make_sample(identity: Sample, counts: Sequence[int], image_px: int) -> Sample:
    """A sample from its ids, `category` and `sentence`, its `COUNTS`, and the number of pixels of its image."""
    named = dict(zip(COUNTS, counts, strict=True))
    return {**identity, **named, **describe_sample(identity["sentence"], named["object_px"], image_px)}


def counts_of(samples: Sequence[Sample]) -> np.ndarray:
    """The samples' pixel counts, (samples, 5) int64, for `compute_metrics`."""
    return np.array([[sample[name] for name in COUNTS] for sample in samples], dtype=np.int64).reshape(-1, len(COUNTS))


def ratio_intervals(numerators: np.ndarray, denominators: np.ndarray,
                    clusters: Sequence[Any]) -> list[list[float] | None]:
    """95 % percentile bootstrap intervals of sum(numerator) / sum(denominator) for each row: both (k, samples).

    Clusters are drawn as a whole, because sentences of one image succeed and fail together. The generator is seeded,
    so the same numbers give the same intervals. An interval is None if there is only one cluster, or if a denominator
    can be 0.
    """
    names, cluster = np.unique(np.asarray(clusters).astype(str), return_inverse=True)
    if len(names) < 2:
        return [None] * len(numerators)
    sums = [np.stack([np.bincount(cluster, row, len(names)) for row in rows]) for rows in (numerators, denominators)]

    def ratio(above: np.ndarray, below: np.ndarray, axis: int) -> np.ndarray:
        return above.sum(axis) / below.sum(axis)

    with np.errstate(invalid="ignore", divide="ignore"):
        found = bootstrap(sums, ratio, axis=-1, paired=True, vectorized=True, n_resamples=RESAMPLES, batch=100,
                          confidence_level=CONFIDENCE, method="percentile", rng=np.random.default_rng(0))
    bounds = zip(found.confidence_interval.low.tolist(), found.confidence_interval.high.tolist(), strict=True)
    return [list(pair) if np.isfinite(pair).all() else None for pair in bounds]


def metric_intervals(samples: Sequence[Sample]) -> dict[str, Any]:
    """The interval of every metric of `compute_metrics`, [low, high] or None, under the metric's name."""
    intersection, union, _, boundary_intersection, boundary_union = counts_of(samples).T
    iou = intersection / np.maximum(union, 1)
    one = np.ones(len(samples))
    numerators = [iou, intersection, boundary_intersection / np.maximum(boundary_union, 1),
                  *(iou >= x for x in PRECISION_THRESHOLDS)]
    denominators = [one, union, *[one] * (1 + len(PRECISION_THRESHOLDS))]
    mean, overall, boundary, *precision = ratio_intervals(
        100 * np.stack(numerators), np.stack(denominators), [sample["image_id"] for sample in samples])
    return {"mIoU": mean, "oIoU": overall, "boundary_IoU": boundary,
            "precision": dict(zip(map(str, PRECISION_THRESHOLDS), precision, strict=True))}


def break_down(samples: Sequence[Sample], by: str) -> list[dict[str, Any]]:
    """A row for each group, with its metrics, number of samples and mIoU's interval; categories are sorted by name."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample[by], []).append(sample)
    rows = []
    for name in GROUPINGS[by] or sorted(groups):
        if members := groups.get(name):
            counts = counts_of(members)
            iou = 100 * counts[:, 0] / np.maximum(counts[:, 1], 1)
            images = [member["image_id"] for member in members]
            interval, = ratio_intervals(iou[None], np.ones((1, len(members))), images)
            rows.append({"group": name, "samples": len(members), **compute_metrics(counts), "mIoU_interval": interval})
    return rows


def summarize(samples: Sequence[Sample], no_target_pixels: int = NO_TARGET_PIXELS) -> dict[str, Any]:
    """All figures computed from the samples: metrics, `intervals`, `breakdowns`, and the numbers of empty masks.

    If samples have `no_target`, `generalized` is added (see `lib.evaluation.generalized`).
    """
    counts = counts_of(samples)
    predicted_px = counts[:, 0] + counts[:, 1] - counts[:, 2]   # |P| = |I| + |U| − |T|
    no_target = np.array([sample.get("no_target", False) for sample in samples], dtype=bool)
    return {**all_metrics(counts, no_target, no_target_pixels), "intervals": metric_intervals(samples),
            "breakdowns": {by: break_down(samples, by) for by in GROUPINGS},
            "empty_masks": int(((counts[:, 2] == 0) & ~no_target).sum()),
            "empty_predictions": int((predicted_px == 0).sum())}


def format_table(rows: Sequence[tuple[str, dict[str, Any]]], style: str) -> str:
    """The paper's table, Prec@X, oIoU and mIoU, in 'latex' or 'markdown'; each row is (name, metrics)."""
    cells = [[name, *("%.2f" % value for value in (*metrics["precision"].values(), metrics["oIoU"], metrics["mIoU"]))]
             for name, metrics in rows]
    return STYLES[style](["Method", *(f"Prec@{x}" for x in PRECISION_THRESHOLDS), "oIoU", "mIoU"], cells)
