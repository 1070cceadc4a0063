"""Compares two results of test.py, sample by sample: differences with 95 % intervals, and what changed most.

Both must come from the same split; an interval that excludes 0 means a difference that other images would show too.
"""
import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from args import Parser, positive
from distributed import user_errors
from lib.evaluation.metrics import compute_metrics
from lib.evaluation.result_files import read_results
from lib.evaluation.tables import counts_of, format_table, ratio_intervals
from utils import UserError, log, write_json

METRICS = {"mIoU": "mean IoU", "oIoU": "overall IoU", "boundary_IoU": "boundary IoU"}


def get_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", metavar="A.json", help="what test.py --results wrote")
    parser.add_argument("second", metavar="B.json", help="another one, of the same split")
    parser.add_argument("--changed", default=10, type=positive, metavar="N",
                        help="how many of the samples that changed most are listed (default: 10)")
    parser.add_argument("--json", metavar="FILE", help="also write the differences to this file")
    parser.add_argument("--latex", action="store_true", help="print the paper's table of both")
    parser.add_argument("--markdown", action="store_true", help="the same in Markdown")
    return parser


def pair(first: dict[str, Any], second: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Both results of each (ref_id, sent_id), in the first one's order. Raises `UserError` unless all match."""
    by_key = [{(sample["ref_id"], sample["sent_id"]): sample for sample in results["samples"]}
              for results in (first, second)]
    only = [sorted(map(str, ours.keys() - theirs.keys())) for ours, theirs in (by_key, by_key[::-1])]
    if only[0] or only[1]:
        raise UserError(f"the results are of different samples: {len(only[0])} are only in the first, {len(only[1])} "
                        f"only in the second (split {first.get('split')} and {second.get('split')}), for one (ref_id, "
                        f"sent_id) {(only[0] or only[1])[0]}")
    return [(sample, by_key[1][key]) for key, sample in by_key[0].items()]


def compare(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
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
    names = list(METRICS)
    intervals = ratio_intervals(100 * np.stack([changes[name] for name in names]), np.stack([one] * len(names)), images)
    return {name: {"first": metrics[0][name], "second": metrics[1][name],
                   "difference": metrics[1][name] - metrics[0][name], "interval": interval}
            for name, interval in zip(names, intervals, strict=True)}


def ratio(counts: np.ndarray, column: int) -> np.ndarray:
    """IoU of each sample, from the column of its intersection; the union follows."""
    return counts[:, column] / np.maximum(counts[:, column + 1], 1)


def run(args: argparse.Namespace) -> None:
    first, second = read_results(args.first), read_results(args.second)
    if set(first.get("annotations", {}).values()) != set(second.get("annotations", {}).values()):
        log("note: the annotation files were not the same")
    pairs = pair(first, second)
    compared = compare(pairs)
    log(f"{len(pairs)} samples of {len({sample['image_id'] for sample, _ in pairs})} images: "
          f"{args.first} -> {args.second}")
    for name, entry in compared.items():
        low, high = entry["interval"] or (float("nan"), float("nan"))
        verdict = "0 is outside" if low > 0 or high < 0 else "0 is inside"
        log(f"  {METRICS[name]:13} {entry['first']:6.2f} -> {entry['second']:6.2f}   {entry['difference']:+.2f}, "
              f"95 % interval {low:+.2f} to {high:+.2f}: {verdict}")
    change = [100 * (b["intersection"] / max(1, b["union"]) - a["intersection"] / max(1, a["union"])) for a, b in pairs]
    most = sorted(range(len(pairs)), key=lambda place: -abs(change[place]))[:args.changed]
    log(f"changed most (of {sum(value != 0 for value in change)} that changed; IoU of A, change, ref, sentence):")
    changed = []
    for place in most:
        a, b = pairs[place]
        before = 100 * a["intersection"] / max(1, a["union"])
        said = a["sentence"] + (f"  |  {b['sentence']}" if a["sentence"] != b["sentence"] else "")
        log(f"  {before:5.1f}  {change[place]:+6.1f}  {a['ref_id']}  {said}")
        changed.append({"ref_id": a["ref_id"], "sent_id": a["sent_id"], "sentence": a["sentence"], "first": before,
                        "change": change[place]})
    for style in ("latex", "markdown"):
        if getattr(args, style):
            names = [Path(path).stem for path in (args.first, args.second)]
            metrics = [compute_metrics(counts_of(samples)) for samples in zip(*pairs, strict=True)]
            log(format_table(list(zip(names, metrics, strict=True)), style))
    if args.json:
        write_json(Path(args.json), {"first": args.first, "second": args.second, "samples": len(pairs), **compared,
                                     "changed_most": changed})


def main() -> None:
    args = get_parser().parse_args()
    with user_errors("compare_results.py"):
        run(args)


if __name__ == "__main__":
    main()
