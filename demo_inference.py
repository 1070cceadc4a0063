"""Segments your own images and scenes by your own sentences: writes a mask and an overlay for each pair."""
import argparse
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import distributed
import utils
from args import INFERENCE, RecipeParser, get_parser, positive, real, share, whole
from bert import reading_problems
from lib.accelerate import set_up
from lib.imagery.scenes import Scene
from lib.imagery.sources import Plain, Tile, in_one_piece, open_source
from lib.inference.outputs import Wanted, write_image
from lib.inference.pairs import Pair, name_outputs, read_pairs
from lib.predictor import Predictor, ReadingWarning, tile_starts
from refer.own import class_names_of
from utils import UserError, log

BATCH = 8                        # pairs that go through the network together
BATCH_PIXELS = 1 << 25           # of probabilities that are held for them
MOST_PROBLEMS = 10               # that are named at the end
Job = tuple[Path, Plain | Scene, Tile | None, list[str]]   # the whole image as one tile, unless --tile is given


def tile_overlap(text: str) -> float:
    """An argparse type: a number from 0 to 0.9."""
    if share(text) > 0.9:
        raise argparse.ArgumentTypeError(f"{text} is more than 0.9: tiles would hardly move on")
    return share(text)


def parser() -> RecipeParser:
    """The flags of the network and the run, the images and sentences, and what is written."""
    flags = get_parser(*INFERENCE)
    flags.description = __doc__
    demo = flags.add_argument_group("demo")
    demo.add_argument("--image", nargs="+", default=[], metavar="FILE|FOLDER",
                      help="images and scenes of any size and format; a folder stands for all in it")
    demo.add_argument("--sentence", nargs="+", default=[], metavar="TEXT",
                      help="sentences, each of which is applied to each image")
    demo.add_argument("--pairs", metavar="FILE",
                      help="instead of these two: pairs in a CSV with the header image,sentence, or in JSON Lines;\n"
                           "implies --json")
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
    scenes = flags.add_argument_group("scenes (pip install -r requirements-geo.txt)")
    scenes.add_argument("--bands", nargs="+", type=whole(1), default=[], metavar="N",
                        help="red, green and blue band, or one band, counted from 1\n"
                             "(default: those that the file calls so, else the first three)")
    scenes.add_argument("--stretch", nargs=2, type=real(0, 100), metavar=("LOW", "HIGH"),
                        help="percentiles of a scene of more than 8 bits that become black and white (default: 2 98)")
    scenes.add_argument("--save_probabilities", action="store_true",
                        help="also write probabilities: a GeoTIFF of 0 to 1, or a PNG of 0 to 255 for a picture")
    scenes.add_argument("--geojson", nargs="?", const="", metavar="FILE",
                        help="also write each object's outline in longitude and latitude\n"
                             "(default: IMAGE-objects.geojson in --out)")
    scenes.add_argument("--gpkg", nargs="?", const="", metavar="FILE",
                        help="the same as a GeoPackage in the scene's coordinates")
    scenes.add_argument("--min_area", default=0.0, type=real(0, 1e15), metavar="M2",
                        help="leave out objects of fewer square metres (pixels, if the scene has no CRS)\n"
                             "of the two files above (default: 0)")
    scenes.add_argument("--simplify", default=0.0, type=real(0, 1000), metavar="PIXELS",
                        help="outlines in these files may be this far off (default: 0, along pixels' edges)")
    return flags


def find_images(paths: list[str]) -> list[Path]:
    """The named files and the images in named folders, sorted. Raises `UserError` for a folder without images."""
    known = {*Image.registered_extensions(), ".vrt", ".img"}
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


def find_pairs(args: argparse.Namespace) -> tuple[list[Pair], list[str]]:
    """The pairs that the flags name, and what is wrong with lines of --pairs."""
    if args.pairs and (args.image or args.sentence):
        raise UserError("--pairs names images and sentences: leave --image and --sentence out")
    if args.pairs:
        return read_pairs(Path(args.pairs))
    if not (args.image and args.sentence):
        raise UserError("nothing to segment: give --image FILE and --sentence TEXT, or --pairs FILE")
    return [Pair(image, sentence) for image in dict.fromkeys(find_images(args.image))
            for sentence in dict.fromkeys(args.sentence)], []


def wanted_files(args: argparse.Namespace, images: int) -> Wanted:
    """What is to be written. Raises `UserError` for flags that contradict each other."""
    if len(args.bands) not in (0, 1, 3):
        raise UserError(f"--bands takes one or three numbers, not {len(args.bands)}")
    if args.stretch and args.stretch[0] >= args.stretch[1]:
        raise UserError(f"--stretch takes a low and a high percentile, not {args.stretch[0]:g} and {args.stretch[1]:g}")
    given = {".geojson": args.geojson, ".gpkg": args.gpkg}
    for suffix, file in given.items():
        if file and images > 1:
            raise UserError(f"--{suffix[1:]} {file} would hold the objects of {images} images: leave the file's name "
                            "out, and each image gets its own file")
    folder = Path(args.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written: {error}") from error
    return Wanted(folder, args.threshold, args.json is not None or bool(args.pairs), args.save_probabilities,
                  {suffix: Path(file) if file else None for suffix, file in given.items() if file is not None},
                  args.min_area, args.simplify)


def segment(predictor: Predictor, jobs: list[Job], args: argparse.Namespace
            ) -> Iterator[tuple[Job, Iterator[tuple[int, np.ndarray]]]]:
    """Each image's bands of probabilities: in tiles with `--tile`, else whole images in batches over `jobs`."""
    pairs = [(tile, sentence) for *_, tile, sentences in jobs if tile is not None for sentence in sentences]
    found: list[np.ndarray] = []
    for first in range(0, len(pairs), BATCH):
        tiles, sentences = zip(*pairs[first:first + BATCH], strict=True)
        found += predictor.batch_probabilities(tiles, sentences)
    for job in jobs:
        _, source, tile, sentences = job
        if tile is None:
            yield job, predictor.bands(source, sentences, args.tile, args.overlap, tile_bar)
        else:
            yield job, iter([(0, np.stack(found[:len(sentences)]))])
            del found[:len(sentences)]


def tile_bar(tiles: Any) -> Any:
    """A progress bar over a scene's tiles, or lines where there is no terminal."""
    return utils.progress(tiles, "tiles", lines=True)


def run(args: argparse.Namespace) -> None:
    """Segments all pairs; `main` reports errors. An image that cannot be read does not stop the others."""
    pairs, problems = find_pairs(args)
    names = name_outputs(pairs)
    images: dict[Path, list[Pair]] = {}
    for pair in pairs:
        images.setdefault(pair.image, []).append(pair)
    device = distributed.init_processes(args.device, args.local_rank)
    set_up(device, args)
    class_names = class_names_of(args.dataset, args.refer_data_root) if "dataset" in args.given else ()
    predictor = Predictor(args.resume, device=device, amp=args.amp, fast=args.fuse, args=args, class_names=class_names)
    is_new, wanted = not Path(args.out).exists(), wanted_files(args, len(images))
    for sentence in dict.fromkeys(pair.sentence for pair in pairs):
        for problem in reading_problems(predictor.tokenizer, sentence, predictor.max_tokens):
            log(f"WARNING: {ReadingWarning(sentence, problem)}")
    warnings.simplefilter("ignore", ReadingWarning)   # the lines above say the same
    entries: list[dict[str, Any]] = []
    waiting: list[Job] = []
    done = 0

    def flush() -> int:
        """Segments the waiting images and writes their files; returns how many were written."""
        written = 0
        for (path, source, _, sentences), bands in segment(predictor, waiting, args):
            try:
                entries.extend(write_image(wanted, path, source, {sentence: names[path, sentence]
                                                                  for sentence in sentences}, bands))
                written += 1
            except UserError as error:
                problems.append(where(path) + str(error))
            finally:
                if isinstance(source, Scene):
                    source.close()
        waiting.clear()
        return written

    def where(path: Path) -> str:
        """The line of --pairs that names an image first."""
        return f"{place}: " if (place := images[path][0].where) else ""

    shown: Iterable[tuple[Path, list[Pair]]] = images.items()
    if len(images) > 1 and not args.tile:
        shown = utils.progress(shown, "images", lines=True)
    for path, listed in shown:
        source: Plain | Scene | None = None
        try:
            source = open_source(path, bool(args.tile), args.bands, stretch=args.stretch and tuple(args.stretch))
            wanted.check(source, str(path))
            if args.tile:
                tile_starts(source.size, len(listed), args.tile, args.overlap)   # refused before files are begun
            tile = None if args.tile else in_one_piece(source)
        except UserError as error:
            problems.append(where(path) + str(error))
            if isinstance(source, Scene):   # an open one would keep GDAL's settings until it is collected
                source.close()
            continue
        waiting.append((path, source, tile, [pair.sentence for pair in listed]))
        if args.tile or isinstance(source, Scene) or sum(len(sentences) for *_, sentences in waiting) >= BATCH or \
                sum(np.prod(held.size) * len(sentences) for _, held, _, sentences in waiting) >= BATCH_PIXELS:
            done += flush()
    done += flush()
    if not done and is_new:
        with suppress(OSError):   # an image may have been written in part
            wanted.folder.rmdir()
    if wanted.entries and entries:
        utils.write_json(Path(args.json or wanted.folder / "predictions.json"), entries)
    if problems:
        more = f"; and {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else ""
        raise UserError("; ".join(problems[:MOST_PROBLEMS]) + more + (
            f" ({done} of {len(images)} images were done)" if len(images) > 1 else ""))


def main() -> None:
    """Parses the command line, segments, and reports errors in one line."""
    args = parser().parse_args()
    with distributed.user_errors("demo_inference.py"):
        run(args)


if __name__ == "__main__":
    main()
    distributed.leave_at_once()
