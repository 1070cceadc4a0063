"""Scores the predicted masks of any program on a split, with the evaluator of test.py.

--predictions is what `test.py --save_predictions` writes, or equivalent: a JSON list of {ref_id, sent_id, segmentation}
with COCO RLEs (without sent_id: for all sentences of the ref), or a folder of PNGs named REF_SENT.png, not 0 inside.
Each is compared in its own size; the true mask is resized to it by nearest neighbour where the sizes differ. A
prediction may have at most 16 times the pixels of its true mask, or 4 million if that is more.
"""
import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image

from args import Parser, positive
from data import identify
from distributed import user_errors
from lib.evaluation import NO_TARGET_PIXELS
from lib.evaluation.generalized import format_all, format_generalized_table
from lib.evaluation.metrics import count_pixels, warning_of_empty_predictions
from lib.evaluation.predictions import ids_of_png, read_entries
from lib.evaluation.result_files import FORMAT_VERSION
from lib.evaluation.tables import counts_of, format_table, make_sample, summarize
from refer.mask_files import masks_digest
from refer.masks import LARGEST_MASK_PX, decode_segmentation
from refer.refer import REFER
from refer.table import RefTable
from transforms import resize_mask
from utils import UserError, log, sha256_of, write_json

Masks = dict[tuple[str, str], Callable[[int], np.ndarray]]
LARGER, ALWAYS_ALLOWED_PX = 16, 2**22   # limits of a prediction's pixels: times those of the true mask, in all


def get_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", required=True, metavar="FILE|FOLDER", help="what to score")
    parser.add_argument("--refer_data_root", default="./refer/data/", metavar="FOLDER",
                        help="holds DATASET/ and images/ (default: ./refer/data/; its README shows the layout)")
    parser.add_argument("--dataset", default="rrsisd", metavar="NAME|FOLDER",
                        help="a known data set, or the folder of one of your own (default: rrsisd)")
    parser.add_argument("--splitBy", default="unc", help="way of splitting the data set (default: unc)")
    parser.add_argument("--split", default="test", help="default: test")
    parser.add_argument("--published_masks", action="store_true",
                        help="pixels in several parts of a mask count as background, as in the original code")
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
    """{(ref_id, sent_id) as text: reader of the mask, (H, W) bool}; sent_id '' stands for all of a ref's sentences.

    A reader is called with the largest number of pixels that the mask may have; it raises `UserError` for a damaged
    mask. Raises `UserError` for a file or folder that holds no predictions.
    """
    if path.is_dir() and not (path / "predictions.json").is_file():
        files = sorted(path.glob("*.png"))
        if not files:
            raise UserError(f"--predictions {path}: the folder has neither predictions.json nor PNGs named "
                            "REF_SENT.png")
        log(f"scoring {len(files)} PNGs of {path}")
        return {ids_of_png(file): partial(read_png, file) for file in files}
    file = path / "predictions.json" if path.is_dir() else path
    log(f"scoring the masks in {file}" + (", not the PNGs beside it" if path.is_dir() and any(path.glob("*.png"))
                                          else ""))
    return {name: partial(decode, f"--predictions {file}: the mask of ref_id {name[0]}, sent_id {name[1]}", rle)
            for name, rle in read_entries(file).items()}


def read_png(file: Path, most_px: int) -> np.ndarray:
    """A mask picture as (H, W) bool, true where a channel other than alpha is not 0.

    Raises `UserError`, also for a picture with more than two values, such as probabilities.
    """
    try:
        with Image.open(file, formats=["PNG"]) as opened:
            if opened.width * opened.height > most_px:   # before it is decoded
                raise ValueError(f"it has {opened.width}×{opened.height} pixels, more than {most_px} in all")
            bands, pixels = opened.getbands(), np.asarray(opened)
    except Exception as error:   # damaged bytes surface as nearly any exception
        raise UserError(f"{file} cannot be read as a PNG: {error}") from error
    channels = pixels.reshape(*pixels.shape[:2], len(bands))[..., [band != "A" for band in bands]]
    inside = channels.any(axis=2)
    if inside.any() and (channels[inside] != channels[inside][0]).any():
        raise UserError(f"{file} has more than two values: a mask has 0 and one other. Probabilities need a threshold "
                        "first, and masks must not have been JPEGs")
    return inside


def decode(place: str, rle: Any, most_px: int) -> np.ndarray:
    """The mask (H, W) bool of one entry. Raises `UserError`, which names the `place`, if it is damaged."""
    try:
        return decode_segmentation(rle, None, None, most_px=most_px).astype(bool)
    except ValueError as error:
        raise UserError(f"{place} is damaged: {error}") from error


def score(refer: REFER, split: str, masks: Masks, size_px: int | None) -> tuple[list[dict[str, Any]], int]:
    """Every (ref, sentence) of the split as a sample of `lib.evaluation.tables`, and how many had no prediction.

    A sample without a prediction counts as an empty one: its IoU is 0. Raises `UserError` for predictions of refs
    that the split does not have, and when there is none for any of its own.
    """
    refs = refer.loadRefs(refer.getRefIds(split=split))
    wanted = {(str(ref["ref_id"]), str(sentence["sent_id"])) for ref in refs for sentence in ref["sentences"]}
    foreign = [name for name in masks if name not in wanted and (name[1] or not any(w[0] == name[0] for w in wanted))]
    if foreign:
        raise UserError(f"{len(foreign)} of {len(masks)} predictions are of no sentence of the split {split}, such as "
                        f"ref_id {foreign[0][0]}, sent_id {foreign[0][1] or 'none'}: is it another split or data set?")
    samples, missing = [], 0
    for ref in refs:
        truth = refer.getMask(ref)["mask"]
        for number, sentence in enumerate(ref["sentences"]):
            names = [(str(ref["ref_id"]), str(sentence["sent_id"])), (str(ref["ref_id"]), "")]
            read = next((masks[name] for name in names if name in masks), None)
            missing += read is None
            most_px = min(max(LARGER * truth.size, ALWAYS_ALLOWED_PX), LARGEST_MASK_PX)
            predicted = read(most_px) if read else np.zeros_like(truth, dtype=bool)
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
    log(format_all(results))
    if warning := warning_of_empty_predictions(counts_of(samples)):
        log(warning)
    if missing:
        log(f"{missing} of {len(samples)} samples have no prediction: their IoU is 0")
    for style in ("latex", "markdown"):
        if getattr(args, style):
            log(format_table([(Path(args.predictions).stem, results)], style))
            if "generalized" in results:
                log(format_generalized_table([(Path(args.predictions).stem, results["generalized"])], style))
    if args.results:
        write_json(Path(args.results), {
            "format_version": FORMAT_VERSION,
            **results, "split": args.split, "images": len({sample["image_id"] for sample in samples}),
            "sentences": len(samples), "missing": missing, "predictions": str(args.predictions),
            "annotations": {path: sha256_of(path) for path in refer.annotation_files},
            "masks": masks_digest(RefTable.of(refer)), "flags": vars(args),
            "samples": samples})
        log(f"wrote {args.results}")


def main() -> None:
    args = get_parser().parse_args()
    with user_errors("score_predictions.py"):
        run(args)


if __name__ == "__main__":
    main()
