"""The outcome of an evaluation: gathered from the processes, described in the log, and written to files."""
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distributed import gather_objects, gather_rows
from lib.checkpoint import weights_file
from lib.evaluation.generalized import all_metrics, format_all, format_generalized_table
from lib.evaluation.metrics import compute_metrics, format_metrics, warning_of_empty_predictions
from lib.evaluation.predictions import Prediction, Recorder
from lib.evaluation.result_files import FORMAT_VERSION
from utils import UserError, describe_run, make_folder, rank, sha256_of


@dataclass(frozen=True)
class Outcome:
    """An evaluation's figures over all processes, in the order of the samples.

    `counts` and `original_counts`, (n, 6) int64, have a row for each sample, index and `lib.evaluation.metrics.COUNTS`,
    at the network's size and at the masks' original size (no rows without `--eval_ori_size`). `predictions` has one
    entry for each sample, or none. `left_out` counts samples with unreadable images. `no_target`, (n,) bool, marks
    samples whose mask is empty by design; a prediction of fewer than `no_target_pixels` pixels means no target.
    """

    counts: np.ndarray
    original_counts: np.ndarray
    predictions: list[Prediction]
    left_out: int
    no_target: np.ndarray
    no_target_pixels: int

    @property
    def indices(self) -> list[int]:
        """The samples' indices in the data set."""
        return self.counts[:, 0].tolist()

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics of `lib.evaluation.generalized.all_metrics` at the network's size."""
        return all_metrics(self.counts[:, 1:], self.no_target, self.no_target_pixels)

    @property
    def original_metrics(self) -> dict[str, Any] | None:
        """`compute_metrics` at the masks' original size, or None without `--eval_ori_size`."""
        return compute_metrics(self.original_counts[:, 1:]) if len(self.original_counts) else None


def collect(counts: Tensor, recorder: Recorder, left_out: int, no_target: Callable[[np.ndarray], np.ndarray],
            no_target_pixels: int) -> Outcome:
    """Gathers the outcome of all processes. Raises `UserError` if no sample could be read.

    `no_target` maps samples' indices to bool, true where the mask is empty by design.
    """
    rows, original = in_order(gather_rows(counts)), in_order(gather_rows(recorder.rows().to(counts.device)))
    shares = gather_objects((left_out, recorder.predictions))
    found = {index: prediction for _, share in shares for index, prediction in share.items()}
    outcome = Outcome(rows, original, [found[index] for index in rows[:, 0].tolist()] if found else [],
                      sum(count for count, _ in shares), no_target(rows[:, 0]), no_target_pixels)
    if not len(rows):
        raise UserError(f"none of the {outcome.left_out} samples of the split could be read; "
                        "tools/check_dataset.py says what is wrong with each")
    return outcome


def in_order(rows: Tensor) -> np.ndarray:
    """Rows whose first column is the sample's index, sorted by it, on the CPU."""
    return rows[rows[:, 0].argsort()].cpu().numpy()


def describe(outcome: Outcome, model: str, styles: list[str]) -> str:
    """The lines that test.py prints: metrics, notes on them, and the paper's table in the given styles."""
    lines = [format_all(metrics := outcome.metrics)]
    if outcome.original_metrics:
        lines.append("at the masks' original size:\n" + format_metrics(outcome.original_metrics))
    samples = len(outcome.counts)
    if empty := int(((outcome.counts[:, 3] == 0) & ~outcome.no_target).sum()):
        lines.append(f"{empty} of {samples} samples have an empty mask: their IoU is 0 whatever is predicted")
    if warning := warning_of_empty_predictions(outcome.counts[:, 1:]):
        lines.append(warning)
    if outcome.left_out:
        lines.append(f"{outcome.left_out} of {samples + outcome.left_out} samples were left out for their bad images: "
                     "the figures cannot be compared with those over all samples")
    if styles:
        from lib.evaluation.tables import format_table
        lines += [format_table([(model, metrics)], style) for style in styles]
        if "generalized" in metrics:
            lines += [format_generalized_table([(model, metrics["generalized"])], style) for style in styles]
    return "\n".join(lines)


def make_folders(args: Namespace) -> None:
    """Makes the output folders before the evaluation, whose work would otherwise be lost. Raises `UserError`."""
    if args.results and Path(args.results).is_dir():
        raise UserError(f"--results {args.results} is a folder: give the name of a file")
    for folder in output_folders(args):
        if rank() == 0:
            make_folder(folder)


@contextmanager
def no_empty_folders(args: Namespace) -> Iterator[None]:
    """If the evaluation within fails, removes the output folders that it has made and left empty."""
    new = [folder for folder in output_folders(args) if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in new:
            with suppress(OSError):   # it was not made, or is not empty
                folder.rmdir()
        raise


def output_folders(args: Namespace) -> list[Path]:
    """The folders that the flags name for results, report and predictions."""
    names = (Path(args.results).parent if args.results else None, args.report, args.save_predictions)
    return [Path(name) for name in names if name]


def make_results(outcome: Outcome, args: Namespace, model: str, dataset: Any, device: torch.device,
                 masks: str = "") -> dict[str, Any]:
    """The contents of `--results`: metrics, intervals, tables, the run's settings, and each sample's counts.

    `dataset` is the `data.EvalSet` that was evaluated, `masks` a fingerprint of the pictures that are its masks.
    """
    from lib.evaluation.tables import make_sample, summarize  # scipy is slow to import, and few runs need it
    samples = [make_sample(dataset.describe(index), counts, dataset.size_px ** 2)
               for index, *counts in outcome.counts.tolist()]
    return {"format_version": FORMAT_VERSION, **summarize(samples, outcome.no_target_pixels),
            "original_size": outcome.original_metrics, "model": model, "dataset": dataset.name, "split": args.split,
            "images": dataset.images(), "sentences": len(dataset), "left_out": outcome.left_out,
            "notes": dataset.table.notes,
            "checkpoint": {"path": str(args.resume), "sha256": sha256_of(weights_file(args.resume))},
            "annotations": {path: sha256_of(path) for path in dataset.table.annotation_files},
            "masks": masks, "flags": vars(args),
            **describe_run(device), "samples": samples}
