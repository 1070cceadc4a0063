"""Scores anybody's predicted masks on a split, with the evaluator of test.py.

--predictions is what `test.py --save_predictions` writes, or its like: a JSON list of {ref_id, sent_id, segmentation}
with COCO RLEs (without sent_id: for all sentences of the ref), or a folder of PNGs named REF_SENT.png, not 0 inside.
Each is compared in its own size; the true mask is resized to it by nearest neighbour where the sizes differ.
"""
import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image

from args import positive
from data import identify
from distributed import user_errors
from lib.evaluation import NO_TARGET_PIXELS
from lib.evaluation.generalized import format_all, format_generalized_table
from lib.evaluation.metrics import count_pixels
from lib.evaluation.tables import format_table, make_sample, summarize
from refer.layouts import DATASETS
from refer.masks import decode_segmentation
from refer.refer import REFER
from transforms import resize_mask
from utils import UserError, sha256_of, write_json

Masks = dict[tuple[str, str], Callable[[], np.ndarray]]


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", required=True, metavar="FILE|FOLDER", help="what to score")
    parser.add_argument("--refer_data_root", default="./refer/data/", metavar="FOLDER",
                        help="holds DATASET/ and images/ (default: ./refer/data/; its README shows the layout)")
    parser.add_argument("--dataset", default="rrsisd", choices=DATASETS, help="default: rrsisd")
    parser.add_argument("--splitBy", default="unc", help="whose division of the data set (default: unc)")
    parser.add_argument("--split", default="test", help="default: test")
    parser.add_argument("--published_masks", action="store_true",
                        help="pixels in several parts of a mask count as background, as in the published code")
    parser.add_argument("--img_size", type=positive, metavar="PIXELS",
                        help="compare at this size, masks and predictions resized by nearest neighbour\n"
                             "(default: each prediction's own)")
    parser.add_argument("--no_target_pixels", default=NO_TARGET_PIXELS, type=positive, metavar="N",
                        help=f"a mask of fewer pixels means that there is no target (default: {NO_TARGET_PIXELS})")
    parser.add_argument("--results", metavar="FILE", help="write what test.py --results writes")
    parser.add_argument("--latex", action="store_true", help="print the paper's table")
    parser.add_argument("--markdown", action="store_true", help="print the paper's table")
    return parser


def read_predictions(path: Path) -> Masks:
    """What reads each predicted mask, (H, W) bool, by ref_id and sent_id as text ('' for all of a ref's sentences).

    Raises `UserError` for a file or folder that holds no predictions; a damaged mask raises it when it is read.
    """
    if path.is_dir() and not (path / "predictions.json").is_file():
        files = sorted(path.glob("*.png"))
        if not files:
            raise UserError(f"--predictions {path}: the folder has neither predictions.json nor PNGs named "
                            "REF_SENT.png")
        names = {tuple([*file.stem.split("_", 1), ""][:2]): file for file in files}
        return {name: lambda file=file: read_png(file) for name, file in names.items()}
    file = path / "predictions.json" if path.is_dir() else path
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(entries, list):
            raise TypeError(f"it holds a {type(entries).__name__}")
        masks: Masks = {}
        for entry in entries:
            name = str(entry["ref_id"]), str(entry.get("sent_id", ""))
            if name in masks:
                raise ValueError(f"ref_id {name[0]}, sent_id {name[1]} occurs twice")
            masks[name] = lambda name=name, rle=entry["segmentation"]: decode(file, name, rle)
        return masks
    except OSError as error:
        raise UserError(f"--predictions {file} cannot be read: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"--predictions {file} must be a JSON list of objects with ref_id, sent_id and segmentation "
                        f"({type(error).__name__}: {error})") from error


def read_png(file: Path) -> np.ndarray:
    """A mask picture as (H, W) bool: not 0 in any channel. Raises `UserError`."""
    try:
        with Image.open(file) as opened:
            pixels = np.asarray(opened)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{file} cannot be read as an image: {error}") from error
    return (pixels if pixels.ndim == 2 else pixels[..., :3].max(axis=2)) != 0


def decode(file: Path, name: tuple[str, str], rle: Any) -> np.ndarray:
    """The mask (H, W) bool of one entry. Raises `UserError` if it is damaged."""
    try:
        return decode_segmentation(rle, None, None).astype(bool)
    except ValueError as error:
        raise UserError(f"--predictions {file}: the mask of ref_id {name[0]}, sent_id {name[1]} is damaged: "
                        f"{error}") from error


def score(refer: REFER, split: str, masks: Masks, size_px: int | None) -> tuple[list[dict[str, Any]], int]:
    """Every (ref, sentence) of the split as a sample of `lib.evaluation.tables`, and how many had no prediction.

    Without a prediction nothing is predicted: the sample's IoU is 0. Raises `UserError` for predictions of refs
    that the split does not have, and when there is none for any of its own.
    """
    refs = refer.loadRefs(refer.getRefIds(split=split))
    wanted = {(str(ref["ref_id"]), str(sentence["sent_id"])) for ref in refs for sentence in ref["sentences"]}
    foreign = [name for name in masks if name not in wanted and (name[1] or not any(w[0] == name[0] for w in wanted))]
    if foreign:
        raise UserError(f"{len(foreign)} of {len(masks)} predictions are of no sentence of the split {split}, for one "
                        f"ref_id {foreign[0][0]}, sent_id {foreign[0][1] or 'none'}: is it another split or data set?")
    samples, missing = [], 0
    for ref in refs:
        truth = refer.getMask(ref)["mask"]
        for number, sentence in enumerate(ref["sentences"]):
            names = [(str(ref["ref_id"]), str(sentence["sent_id"])), (str(ref["ref_id"]), "")]
            read = next((masks[name] for name in names if name in masks), None)
            missing += read is None
            predicted = read() if read else np.zeros_like(truth, dtype=bool)
            height, width = (size_px, size_px) if size_px else predicted.shape
            pair = [resize_mask(mask.astype(np.uint8), height, width)[None] for mask in (predicted, truth)]
            samples.append(make_sample(identify(refer, ref, number), count_pixels(*pair)[0].tolist(), height * width))
    if missing == len(samples):
        raise UserError(f"the predictions hold none of the {len(samples)} samples of the split {split}")
    return samples, missing


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)   # masks are small
    refer = REFER(args.refer_data_root, args.dataset, args.splitBy, args.published_masks)
    samples, missing = score(refer, args.split, read_predictions(Path(args.predictions)), args.img_size)
    results = summarize(samples, args.no_target_pixels)
    print(format_all(results))
    if missing:
        print(f"{missing} of {len(samples)} samples have no prediction: their IoU is 0")
    for style in ("latex", "markdown"):
        if getattr(args, style):
            print(format_table([(Path(args.predictions).stem, results)], style))
            if "generalized" in results:
                print(format_generalized_table([(Path(args.predictions).stem, results["generalized"])], style))
    if args.results:
        write_json(Path(args.results), {
            **results, "split": args.split, "images": len({sample["image_id"] for sample in samples}),
            "sentences": len(samples), "missing": missing, "predictions": str(args.predictions),
            "annotations": {path: sha256_of(path) for path in refer.annotation_files}, "flags": vars(args),
            "samples": samples})
        print(f"wrote {args.results}")


def main() -> None:
    args = get_parser().parse_args()
    with user_errors("score_predictions.py"):
        run(args)


if __name__ == "__main__":
    main()
