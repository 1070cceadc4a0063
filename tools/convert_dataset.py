"""Converts a data set between REFER's files, COCO's JSON, JSON Lines and mask pictures with phrase files.

The result is a data root of its own, which every program here reads as it does the original. What the new format cannot
hold is printed.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from args import Parser
from distributed import user_errors
from refer.refer import REFER
from refer.writers import WRITERS, bring_images, describe
from utils import UserError

MEANINGS = {"refer": "REFER's refs(SPLITBY).p and instances.json", "coco": "COCO's JSON, NAME_SPLIT.json",
            "jsonl": "JSON Lines, NAME_SPLIT.jsonl", "phrases": "mask pictures, images and output_phrase_SPLIT.txt"}


def get_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--refer_data_root", default="./refer/data/", metavar="FOLDER",
                        help="holds the data set (default: ./refer/data/)")
    parser.add_argument("--dataset", required=True, metavar="NAME|FOLDER",
                        help="a known data set, or the folder of one of your own")
    parser.add_argument("--splitBy", default="unc", help="way of splitting the data set (default: unc)")
    parser.add_argument("--to", required=True, choices=WRITERS,
                        help="\n".join(f"{name}: {MEANINGS[name]}" for name in WRITERS))
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="the new data root")
    parser.add_argument("--images", default="link", choices=("link", "copy", "none"),
                        help="how the new data root gets the images (default: link); phrases always writes new files")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = get_parser().parse_args(arguments)
    with user_errors("convert_dataset.py"):
        index = REFER(args.refer_data_root, args.dataset, args.splitBy)
        try:
            lost = WRITERS[args.to](index, args.out, lambda refs: tqdm(refs, "refs", disable=None, leave=False))
            if args.to != "phrases":
                bring_images(index, args.out, args.images)
            describe(index, args.out, args.to)
        except OSError as error:
            raise UserError(f"the data set cannot be written: {error}"
                            + ("; --images copy makes no links" if hasattr(error, "winerror") else "")) from error
        print(f"Wrote {len(index.Refs)} refs of {index.dataset}, read as {index.format}, to {args.out} as {args.to}")
        for what in lost:
            print(f"    lost or changed: {what}")


if __name__ == "__main__":
    main()
