"""Segments your own images by your own sentences: writes a mask and an overlay for each pair."""
import argparse
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

import distributed
import utils
from args import INFERENCE, RecipeParser, get_parser, positive, share
from bert import reading_problems
from lib.accelerate import set_up
from lib.evaluation.predictions import encode_mask
from lib.imagery.drawing import overlay
from lib.imagery.georeference import save_mask
from lib.imagery.pictures import read_picture
from lib.imagery.vectors import polygons
from lib.predictor import Predictor, ReadingWarning, Segmentation
from refer.own import class_names_of
from utils import UserError, log


def tile_overlap(text: str) -> float:
    """An argparse type: a number from 0 to 0.9."""
    if share(text) > 0.9:
        raise argparse.ArgumentTypeError(f"{text} is more than 0.9: tiles would hardly move on")
    return share(text)


def parser() -> RecipeParser:
    """The flags of the network and the run, and the images and sentences."""
    flags = get_parser(*INFERENCE)
    flags.description = __doc__
    demo = flags.add_argument_group("demo")
    demo.add_argument("--image", nargs="+", required=True, metavar="FILE|FOLDER",
                      help="images of any size and format that Pillow opens; a folder stands for all in it")
    demo.add_argument("--sentence", nargs="+", required=True, metavar="TEXT",
                      help="sentences, each of which is applied to each image")
    demo.add_argument("--out", default="predictions", metavar="FOLDER",
                      help="folder for masks and overlays (default: predictions)")
    demo.add_argument("--json", nargs="?", const="", metavar="FILE",
                      help="also write RLE, polygons, box, area and mean probability of each mask\n"
                           "(default: predictions.json in --out)")
    demo.add_argument("--threshold", default=0.5, type=share, metavar="P",
                      help="probability above which a pixel belongs to the object (default: 0.5)")
    demo.add_argument("--tile", type=positive, metavar="PIXELS",
                      help="process the image in tiles of this size: for scenes much larger than training images")
    demo.add_argument("--overlap", default=0.25, type=tile_overlap, metavar="SHARE",
                      help="share of a tile's side that the next one covers too (default: 0.25)")
    return flags


def find_images(paths: list[str]) -> list[Path]:
    """The named files and the images in named folders, sorted. Raises `UserError` for a folder without images."""
    known = Image.registered_extensions()
    files: list[Path] = []
    for path in map(Path, paths):
        try:
            inside = [path] if not path.is_dir() else sorted(
                file for file in path.iterdir() if file.suffix.lower() in known)
        except OSError as error:
            raise UserError(f"--image {path} cannot be read: {error}") from error
        if not inside:
            raise UserError(f"--image {path}: no file in this folder has an image's suffix")
        files += inside
    return files


def name_outputs(images: list[Path], sentences: list[str]) -> dict[tuple[Path, str], str]:
    """A unique file name for each pair, from the image's name and the sentence's words."""
    names: dict[tuple[Path, str], str] = {}
    for image in images:
        for sentence in sentences:
            words = re.sub(r"[^\w]+", "-", sentence.lower()).strip("-")[:60].encode()[:100].decode(errors="ignore")
            stem = image.stem.encode(errors="surrogateescape")[:100].decode(errors="ignore")
            name = base = f"{stem}-{words or 'sentence'}"   # shorter than the 255 bytes that file systems allow
            number = 1
            while name in names.values():
                name = f"{base}-{(number := number + 1)}"
            names[image, sentence] = name
    return names


def segment(predictor: Predictor, image: Image.Image, args: argparse.Namespace) -> list[Segmentation]:
    """A mask for each sentence, computed in tiles with `--tile`, else on the whole image at once."""
    tile_px = args.tile or max(image.size)
    bar = (lambda tiles: utils.progress(tiles, "tiles")) if args.tile else iter
    return predictor.segment_scene(image, args.sentence, tile_px, args.overlap, args.threshold, bar)


def describe(found: Segmentation) -> dict[str, Any]:
    """A mask's entry in --json, in pixels; `box` is [x, y, width, height], `polygons` as in lib.imagery.vectors."""
    rle = encode_mask(found.mask)
    return {"size": rle["size"], "area": int(found.mask.sum()), "box": coco_mask.toBbox(rle).tolist(),
            "mean_probability": round(found.mean_probability, 4), "segmentation": rle,
            "polygons": polygons(found.mask)}


def run(args: argparse.Namespace) -> None:
    """Segments all pairs; `main` reports errors. An image that cannot be read does not stop the others."""
    images, folder = find_images(args.image), Path(args.out)
    names = name_outputs(images, list(dict.fromkeys(args.sentence)))
    device = distributed.init_processes(args.device, args.local_rank)
    set_up(device, args)
    class_names = class_names_of(args.dataset, args.refer_data_root) if "dataset" in args.given else ()
    predictor = Predictor(args.resume, device=device, amp=args.amp, fast=args.fuse, args=args, class_names=class_names)
    for sentence in dict.fromkeys(args.sentence):
        for problem in reading_problems(predictor.tokenizer, sentence, predictor.max_tokens):
            log(f"WARNING: '{sentence}': {problem}")
    warnings.simplefilter("ignore", ReadingWarning)   # the lines above say the same
    entries, problems = [], []
    for path in images:
        try:
            image = read_picture(path, any_size=bool(args.tile))
        except UserError as error:
            problems.append(str(error))
            continue
        geo_tags = image.info.get("geo_tags")
        pixels = np.asarray(image)
        for sentence, found in zip(args.sentence, segment(predictor, image, args), strict=True):
            name = names[path, sentence]
            try:
                folder.mkdir(parents=True, exist_ok=True)
                mask_file = save_mask(found.mask, folder / f"{name}-mask", geo_tags)
                Image.fromarray(overlay(pixels, found.mask)).save(overlay_file := folder / f"{name}-overlay.png")
            except OSError as error:
                raise UserError(f"--out {folder} cannot be written: {error}") from error
            log(f"{path}: '{sentence}': {found.mask.sum()} of {found.mask.size} pixels, mean probability "
                f"{found.mean_probability:.2f} -> {overlay_file}")
            if args.json is not None:
                entries.append({"image": str(path), "sentence": sentence, "mask": str(mask_file),
                                "overlay": str(overlay_file), **describe(found)})
    if args.json is not None:
        utils.write_json(Path(args.json or folder / "predictions.json"), entries)
    if problems:
        raise UserError("; ".join(problems) + (f" ({len(images) - len(problems)} of {len(images)} images were done)"
                                               if len(images) > 1 else ""))


def main() -> None:
    """Parses the command line, segments, and reports errors in one line."""
    args = parser().parse_args()
    with distributed.user_errors("demo_inference.py"):
        run(args)


if __name__ == "__main__":
    main()
    distributed.leave_at_once()
