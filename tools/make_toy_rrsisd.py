"""Writes a toy RRSIS-D: procedural aerial scenes with sentences, in the real set's layout or another set's."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from args import Parser, count, whole
from data.toy import make_toy_rrsisd
from data.toy.layouts import LAYOUTS, SENTENCES
from data.toy.scenes import CONTENTS
from distributed import user_errors
from refer.refer import REFER
from tools.ref_sheet import choose, draw_refs, save_sheet
from utils import UserError

PREVIEWED_REFS = 16  # of at least 20


def get_parser() -> argparse.ArgumentParser:
    parser = Parser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", required=True, help="folder to write; an older toy set in it is replaced")
    parser.add_argument("--images", type=whole(1, 10**6), default=1000, help="number of images, at least 10")
    parser.add_argument("--size", type=whole(1, 4096), default=128, help="side of the images in pixels, at least 64")
    parser.add_argument("--seed", type=count, default=0, help="the same seed gives the same files")
    parser.add_argument("--layout", default="rrsisd", choices=("rrsisd", *LAYOUTS),
                        help="data set whose files are written")
    parser.add_argument("--contents", default="mixed", choices=(*CONTENTS,),
                        help="mixed: three or four objects per scene; roomy: three, a little larger")
    parser.add_argument("--preview", default="", metavar="FILE",
                        help="also draw some of its refs, with their masks, as this PNG")
    return parser


def main() -> None:
    args = get_parser().parse_args()
    with user_errors("make_toy_rrsisd.py"):
        if args.preview and Path(args.preview).resolve().is_relative_to(Path(args.out).resolve()):
            raise UserError(f"--preview {args.preview} lies in --out {args.out}, where nothing but the toy set may be: "
                            "give another folder")
        try:
            make_toy_rrsisd(args.out, args.images, args.size, args.seed, args.layout, args.contents)
        except OSError as error:
            raise UserError(f"The toy set cannot be written: {error}.") from error
        sentences = SENTENCES.get(args.layout, 2) * args.images
        print(f"Wrote {args.images} images of {args.size}×{args.size} px with {sentences} sentences to {args.out}")
        if args.preview:
            index = REFER(args.out, args.layout)
            save_sheet(draw_refs(index, choose(index, PREVIEWED_REFS, args.seed)), Path(args.preview))
            print(f"{PREVIEWED_REFS} of its refs with their masks: {Path(args.preview).resolve()}")


if __name__ == "__main__":
    main()
