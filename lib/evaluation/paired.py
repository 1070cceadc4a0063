"""Paired comparison of two results on the same samples: differences of metrics with their intervals."""
from typing import Any

import numpy as np

from lib.evaluation.metrics import compute_metrics
from lib.evaluation.tables import Sample, counts_of, metric_intervals, ratio_intervals
from lib.evaluation.text_tables import Table, best_in_column
from utils import UserError

COLUMNS = {"0.5": "Prec@0.5", "0.7": "Prec@0.7", "0.9": "Prec@0.9", "oIoU": "oIoU", "mIoU": "mIoU"}


def other_data(first: dict[str, Any], second: dict[str, Any]) -> str:
    """How the data of two results differ, '' if they do not as far as the results say."""
    annotations = [set(results.get("annotations", {}).values()) for results in (first, second)]
    if annotations[0] != annotations[1]:
        return "are of other annotation files"
    masks = [results.get("masks", "") for results in (first, second)]
    return "are of other pictures of masks" if all(masks) and masks[0] != masks[1] else ""


def pair(first: dict[str, Any], second: dict[str, Any]) -> list[tuple[Sample, Sample]]:
    """Both results of each (ref_id, sent_id), in the first one's order. Raises `UserError` unless all match."""
    by_key = [{(sample["ref_id"], sample["sent_id"]): sample for sample in results["samples"]}
              for results in (first, second)]
    only = [sorted(map(str, ours.keys() - theirs.keys())) for ours, theirs in (by_key, by_key[::-1])]
    if only[0] or only[1]:
        raise UserError(f"the results are of different samples: {len(only[0])} are only in the first, {len(only[1])} "
                        f"only in the second (split {first.get('split')} and {second.get('split')}), for example "
                        f"(ref_id, sent_id) {(only[0] or only[1])[0]}")
    return [(sample, by_key[1][key]) for key, sample in by_key[0].items()]


def compare(pairs: list[tuple[Sample, Sample]]) -> dict[str, Any]:
    """{metric: {"first", "second", "difference", "interval"}} in percent; intervals by a bootstrap over images."""
    metrics = [compute_metrics(counts_of(samples)) for samples in zip(*pairs, strict=True)]
    found = changes(pairs)
    intervals = mean_intervals(found, [sample["image_id"] for sample, _ in pairs])
    return {name: {"first": metrics[0][name], "second": metrics[1][name],
                   "difference": metrics[1][name] - metrics[0][name], "interval": intervals[name]} for name in found}


def comparison_table(names: tuple[str, str], pairs: list[tuple[Sample, Sample]]) -> Table:
    """The paper's table of both results with intervals, the better figures in bold, and a row of differences."""
    lines, values = [], []
    for name, samples in zip(names, zip(*pairs, strict=True), strict=True):
        metrics, intervals = ({**found, **found["precision"]} for found in (compute_metrics(counts_of(samples)),
                                                                             metric_intervals(samples)))
        values.append([metrics[key] for key in COLUMNS])
        lines.append([name, *(_with_interval(f"{metrics[key]:.2f}", intervals[key], ".2f") for key in COLUMNS)])
    differences = compare(pairs)
    lines.append([f"{names[1]} less {names[0]}", *(
        _with_interval(f"{entry['difference']:+.2f}", entry["interval"], "+.2f")
        if (entry := differences.get(key)) else "" for key in COLUMNS)])
    return Table(["Method", *COLUMNS.values()], lines, best_in_column(values))


def _with_interval(figure: str, interval: list[float] | None, form: str) -> str:
    return figure if interval is None else f"{figure} [{interval[0]:{form}}, {interval[1]:{form}}]"


def changes(pairs: list[tuple[Sample, Sample]]) -> dict[str, np.ndarray]:
    """{metric: (samples,) float}, in percent: one value per sample; their mean is the second's metric less the first's.

    For mIoU and boundary IoU they are the samples' differences. Overall IoU is a ratio, so its values come from the
    ratio linearised at the estimate (the delta method); a bootstrap of their mean draws the same images for both.
    """
    first, second = (counts_of(samples) for samples in zip(*pairs, strict=True))
    # U·d(ΣI/ΣU) = dI − (ΣI/ΣU)·dU: with it, the mean over samples is the ratio's difference.
    overall = [part[:, 0].sum() / max(1, part[:, 1].sum()) for part in (first, second)]
    terms = [(part[:, 0] - ratio_all * part[:, 1]) / max(1e-9, part[:, 1].mean())
             for part, ratio_all in zip((first, second), overall, strict=True)]
    found = {"mIoU": ratio(second, 0) - ratio(first, 0), "oIoU": terms[1] - terms[0] + overall[1] - overall[0],
             "boundary_IoU": ratio(second, 3) - ratio(first, 3)}
    return {name: 100 * values for name, values in found.items()}


def mean_intervals(values: dict[str, np.ndarray], images: list[Any]) -> dict[str, list[float] | None]:
    """The bootstrap interval over images of the mean of each array, (samples,)."""
    found = ratio_intervals(np.stack(list(values.values())), np.ones((len(values), len(images))), images)
    return dict(zip(values, found, strict=True))


def ratio(counts: np.ndarray, column: int) -> np.ndarray:
    """The IoU of each sample: `column` holds its intersection, the next column its union."""
    return counts[:, column] / np.maximum(counts[:, column + 1], 1)
