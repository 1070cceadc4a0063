"""Comparison of several methods, each trained several times: means, intervals over the runs, differences from a base.

A run is one training; its evaluation on a split is a file of `test.py --results`. The runs of two methods are paired
in their order and should have the same seeds. All metrics are in percent.
"""
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from lib.evaluation.metrics import compute_metrics
from lib.evaluation.paired import changes, mean_intervals, pair
from lib.evaluation.published import Published, beside
from lib.evaluation.tables import CONFIDENCE, counts_of
from lib.evaluation.text_tables import Table, best_in_column

SHOWN = {"mIoU": "mIoU", "oIoU": "oIoU", "0.5": "P@0.5", "0.7": "P@0.7", "0.9": "P@0.9"}
COSTS = {"parameters_m": "parameters, M", "gflop": "GFLOP an image", "train_images_per_second": "training, images/s",
         "images_per_second": "inference, images/s", "train_memory_mib": "training memory, MiB"}
DIFFERENCES = ("mIoU", "oIoU")


@dataclass
class Entry:
    """A row of the table: `runs` are results of one split, `costs` has some of `COSTS`."""

    name: str
    runs: Sequence[dict[str, Any]]
    costs: dict[str, float] = field(default_factory=dict)


def over_runs(values: Sequence[float]) -> dict[str, Any]:
    """{"mean", "interval"}: Student's 95 % confidence interval of the mean, None for a single run."""
    mean, half = float(np.mean(values)), None
    if len(values) > 1:
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return {"mean": mean, "interval": None if half is None else [mean - half, mean + half]}


def metrics_of(entry: Entry) -> dict[str, Any]:
    """{metric of `SHOWN`: `over_runs`, and "runs" with each run's value}."""
    each = [compute_metrics(counts_of(results["samples"])) for results in entry.runs]
    flat = [{**metrics, **metrics["precision"]} for metrics in each]
    return {name: {**over_runs([metrics[name] for metrics in flat]), "runs": [metrics[name] for metrics in flat]}
            for name in SHOWN}


def difference(base: Entry, other: Entry) -> dict[str, Any]:
    """{metric: {"mean", "over_runs", "over_images"}} of `other` less `base`, their runs paired in order.

    The first interval is over training seeds, for these images. The second is over images, for these networks: a
    bootstrap with all runs together. Raises `UserError` if the runs have different samples.
    """
    paired = [pair(*runs) for runs in zip(base.runs, other.runs, strict=False)]
    # All runs have the same number of samples, so the mean over all samples is also the mean over runs.
    each = [changes(pairs) for pairs in paired]
    together = mean_intervals({name: np.concatenate([run[name] for run in each]) for name in DIFFERENCES},
                              [sample["image_id"] for pairs in paired for sample, _ in pairs])
    found = {}
    for name in DIFFERENCES:
        seeds = over_runs([float(run[name].mean()) for run in each])
        found[name] = {"mean": seeds["mean"], "over_runs": seeds["interval"], "over_images": together[name]}
    return found


def summarize_methods(entries: Sequence[Entry], base: str) -> list[dict[str, Any]]:
    """A row of plain data for each method: name, runs, `costs`, `metrics`, and `difference` (None for the base)."""
    reference = next(entry for entry in entries if entry.name == base)
    return [{"name": entry.name, "runs": len(entry.runs), "costs": entry.costs, "metrics": metrics_of(entry),
             "difference": None if entry is reference else difference(reference, entry)} for entry in entries]


def metric_table(rows: Sequence[dict[str, Any]], published: Sequence[Published] = ()) -> tuple[Table, list[str]]:
    """The table of metrics, the best means in bold, with published rows below one's own, and the notes on these."""
    cells = [[row["name"], str(row["runs"]), *(_with_half_width(row["metrics"][name]) for name in SHOWN)]
             for row in rows]
    others, notes = beside(published, ["runs", *SHOWN.values()])
    best = best_in_column([[row["metrics"][name]["mean"] for name in SHOWN] for row in rows], first=2)
    return Table(["method", "runs", *SHOWN.values()], [*cells, *others], best), notes


def difference_table(rows: Sequence[dict[str, Any]], base: str) -> Table:
    """The table of differences from the base, with a row for each other method."""
    heading = ["method"]
    for name in DIFFERENCES:
        heading += [f"{name} less {base}'s", "over runs", "over images"]
    cells = [[row["name"], *(cell for name in DIFFERENCES for cell in _difference(row["difference"][name]))]
             for row in rows if row["difference"]]
    return Table(heading, cells)


def cost_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The table of costs, without those that no method has."""
    costs = [name for name in COSTS if any(name in row["costs"] for row in rows)]
    return Table(["method", *(COSTS[name] for name in costs)],
                 [[row["name"], *(_number(row["costs"].get(name)) for name in costs)] for row in rows])


def _difference(found: dict[str, Any]) -> list[str]:
    return [f"{found['mean']:+.2f}", _interval(found["over_runs"]), _interval(found["over_images"])]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _with_half_width(metric: dict[str, Any]) -> str:
    interval = metric["interval"]
    return f"{metric['mean']:.2f}" + (f" ± {(interval[1] - interval[0]) / 2:.2f}" if interval else "")


def _interval(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"{interval[0]:+.2f} to {interval[1]:+.2f}"
