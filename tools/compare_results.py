"""Compares two results of test.py, sample by sample: differences with 95 % intervals, and what changed most.

Both must come from the same split; an interval that excludes 0 means a difference that other images would show too.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from args import Parser, positive
from distributed import user_errors
from lib.evaluation.paired import compare, comparison_table, other_data, pair
from lib.evaluation.result_files import read_results
from lib.evaluation.text_tables import STYLES
from utils import UserError, log, write_json

FEW_IMAGES = 50   # the fewer images, the more often a bootstrap's 95 % interval misses the true value
METRICS = {"mIoU": "mean IoU", "oIoU": "overall IoU", "boundary_IoU": "boundary IoU"}


def get_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", metavar="A.json", help="what test.py --results wrote")
    parser.add_argument("second", metavar="B.json", help="another one, of the same split")
    parser.add_argument("--changed", default=10, type=positive, metavar="N",
                        help="how many of the samples that changed most are listed (default: 10)")
    parser.add_argument("--allow_other_data", action="store_true",
                        help="compare although annotations or masks differ: ids may then mean other objects")
    parser.add_argument("--json", metavar="FILE", help="also write the differences to this file")
    parser.add_argument("--latex", action="store_true",
                        help="print the paper's table of both as a tabular of booktabs: 95 %% intervals over images, "
                             "the better figure in bold, and the differences")
    parser.add_argument("--markdown", action="store_true", help="the same in Markdown")
    return parser


def run(args: argparse.Namespace) -> None:
    first, second = read_results(args.first), read_results(args.second)
    if problem := other_data(first, second):
        if not args.allow_other_data:
            raise UserError(f"{args.first} and {args.second} {problem}, so a sample may be another object in each: "
                            "evaluate both on the same files, or compare nevertheless with --allow_other_data")
        log(f"--allow_other_data: the results {problem}")
    pairs = pair(first, second)
    compared = compare(pairs)
    images = len({sample["image_id"] for sample, _ in pairs})
    log(f"{len(pairs)} samples of {images} images: {args.first} -> {args.second}")
    if images < FEW_IMAGES:
        log(f"note: {images} images are few: the intervals are narrower than 95 % intervals should be, and other "
            "images may well show another difference")
    for name, entry in compared.items():
        low, high = entry["interval"] or (float("nan"), float("nan"))
        verdict = "0 is outside" if low > 0 or high < 0 else "0 is inside"
        log(f"  {METRICS[name]:13} {entry['first']:6.2f} -> {entry['second']:6.2f}   {entry['difference']:+.2f}, "
              f"95 % interval {low:+.2f} to {high:+.2f}: {verdict}")
    change = [100 * (b["intersection"] / max(1, b["union"]) - a["intersection"] / max(1, a["union"])) for a, b in pairs]
    changes = [place for place, value in enumerate(change) if value]
    most = sorted(changes, key=lambda place: -abs(change[place]))[:args.changed]
    log(f"changed most (of {len(changes)} that changed; IoU of A, change, ref, sentence):" if changes else
        "no sample changed")
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
            names = Path(args.first).stem, Path(args.second).stem
            log(STYLES[style](*comparison_table(names, pairs)))
    if args.json:
        write_json(Path(args.json), {"first": args.first, "second": args.second, "samples": len(pairs), **compared,
                                     "changed_most": changed})


def main() -> None:
    args = get_parser().parse_args()
    with user_errors("compare_results.py"):
        run(args)


if __name__ == "__main__":
    main()
