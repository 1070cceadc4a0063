"""Makes a data set of your own from pictures, masks and sentences: a folder that --dataset takes in every program.

SOURCE is a CSV, TSV or JSON Lines file with the columns image, mask and sentence (and split, category, id, instance), a
file of COCO's JSON with sentences in its annotations, a folder of labelme's files, or a GeoJSON or GeoPackage over
--raster. docs/datasets.md, "Your own", has an example of each.

Exit status: 0, or 2 if rows are bad (then nothing is written, unless --skip_bad leaves them out).
"""
import argparse
import os
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from args import Parser, count, positive, real, share, tokens, whole
from refer.importers import KINDS, expand, kind_of, reader
from refer.own import SPLITS, is_own_name
from utils import UserError, log

SHOWN_BAD_ROWS = 20
SHEET_REFS = 16


def columns(text: str) -> dict[str, str]:
    """An argparse type: 'image=Photo,mask=Mask' as a dict."""
    from refer.importers.table import ALIASES
    found = dict(part.strip().partition("=")[::2] for part in text.split(","))
    if wrong := [name for name in found if name not in ALIASES]:
        raise argparse.ArgumentTypeError(f"'{wrong[0][:40]}' is none of {', '.join(ALIASES)}; give WHAT=COLUMN,…")
    return found


def name_of_dataset(text: str) -> str:
    """An argparse type: the name of a data set of one's own."""
    if not is_own_name(text):
        raise argparse.ArgumentTypeError(f"'{text[:60]}' is no name for a data set of your own: give at most 60 "
                                         "letters, digits, _, ., + and -, and no name of a known data set")
    return text


def get_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="import_dataset.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="SOURCE",
                        help="file or folder to import; of several files, those named …train, …val, …test are these "
                             "splits")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="new folder, to be given as --dataset FOLDER")
    parser.add_argument("--check_only", action="store_true", help="report all bad rows and write nothing")
    parser.add_argument("--skip_bad", action="store_true", help="leave bad rows out (default: stop)")
    parser.add_argument("--sheet", metavar="FILE", help="also draw some refs, with their masks, as this PNG")
    about = parser.add_argument_group("what dataset.json says")
    about.add_argument("--name", type=name_of_dataset, help="name of the data set (default: that of the folder)")
    for field in ("title", "licence", "citation"):
        about.add_argument(f"--{field}", default="", metavar="TEXT")
    about.add_argument("--max_tokens", default=20, type=tokens, metavar="N",
                       help="tokens of a sentence that are read, [CLS] and [SEP] included (default: 20)")
    source = parser.add_argument_group("how the source is read")
    source.add_argument("--kind", choices=KINDS, help="kind of the source (default: by its suffix and content)\n"
                                                      + "; ".join(f"{kind}: {words}" for kind, words in KINDS.items()))
    source.add_argument("--columns", default={}, type=columns, metavar="WHAT=COLUMN,…",
                        help="names of columns or fields: image=Photo,sentence=Text")
    source.add_argument("--images", default="", metavar="FOLDER",
                        help="folder of the pictures (default: paths are relative to the source)")
    source.add_argument("--masks", default="", metavar="FOLDER", help="folder of the masks (default: likewise)")
    source.add_argument("--sentences", default="", metavar="FILE",
                        help="COCO: the sentences of each annotation's id, a JSON object or a table with id and "
                             "sentence")
    value = source.add_mutually_exclusive_group()
    value.add_argument("--object_above", type=count, metavar="N",
                       help="pixels of a mask above N are the object (default: above 0)")
    value.add_argument("--object_value", type=count, metavar="V", help="pixels of a label map that equal V are")
    splits = parser.add_argument_group("splits, where the source names none")
    splits.add_argument("--split", nargs=3, default=(0.8, 0.1, 0.1), type=share, metavar=("TRAIN", "VAL", "TEST"),
                        help="shares of the pictures (default: 0.8 0.1 0.1)")
    splits.add_argument("--seed", default=0, type=count, help="seed of the draw (default: 0)")
    splits.add_argument("--group", default="", metavar="COLUMN",
                        help="pictures with the same value stay in one split; of a layer also 'raster'")
    parser.add_argument("--copy", action="store_true", help="copy the pictures (default: link them)")
    layer = parser.add_argument_group("layers of a map")
    layer.add_argument("--raster", nargs="+", default=(), metavar="FILE", help="georeferenced pictures below the layer")
    layer.add_argument("--tile", default=480, type=whole(16, 4096), metavar="PIXELS",
                       help="side of a tile (default: 480)")
    layer.add_argument("--bands", nargs="+", default=(), type=positive, metavar="N",
                       help="three bands, or one, by their numbers from 1 (default: the first three)")
    layer.add_argument("--layer", default="", metavar="NAME", help="layer of a GeoPackage that has several")
    layer.add_argument("--min_visible", default=0.5, type=real(0.01, 1), metavar="SHARE",
                       help="share of an object that a tile must show to have it (default: 0.5)")
    return parser


def run(args: argparse.Namespace) -> int:
    """Imports, prints, and returns the exit status. Raises UserError for what cannot be read at all."""
    from tqdm import tqdm

    from refer.importers.build import NewFolder, bring_pictures, make_plan, write, write_description
    from refer.importers.rows import Findings, Options

    if not args.out and not args.check_only:
        raise UserError("give --out FOLDER, or --check_only")
    name = args.name or (args.out.resolve().name if args.out else "checked")
    if not is_own_name(name):
        raise UserError(f"--out {args.out}: '{name}' is no name for a data set of your own (at most 60 letters, "
                        "digits, _, ., + and -, and no name of a known data set): give another, or --name")
    if len(args.bands) not in (0, 1, 3):
        raise UserError(f"--bands takes one number or three, not {len(args.bands)}")
    if not sum(args.split):
        raise UserError("--split 0 0 0 leaves no picture: give shares such as 0.8 0.1 0.1")

    def watch(things, what):
        return tqdm(things, what, disable=None, leave=False, dynamic_ncols=True)

    with tempfile.TemporaryDirectory() as nowhere, NewFolder(args.out) if not args.check_only else nullcontext() as new:
        sources, found = expand(args.sources), Findings()
        work = (new or Path(nowhere)) / ".made"
        options = Options(work.resolve(), args.columns, args.images, args.masks, args.sentences, args.group,
                          args.object_above, args.object_value, tuple(args.raster), args.tile, tuple(args.bands),
                          args.layer, args.min_visible)
        kind = args.kind or kind_of(sources)
        rows = list(reader(kind)(sources, options, found))
        if args.sheet and os.path.realpath(args.sheet) in {
                os.path.realpath(path) for row in rows for path in (row.image, getattr(row.mask, "path", row.image))}:
            raise UserError(f"--sheet {args.sheet} is a picture or mask of the source: give another name")
        number = len(rows) + len(found.bad)
        log(f"{', '.join(sources)} ({kind}): {number:,} rows")
        plan = make_plan(rows, args.split, args.seed, args.max_tokens, found, watch)
        write(plan, options, new, name, found, watch)
        for line in found.lines():
            log(f"note: {line}")
        show_bad(found.bad, len(found.bad) if args.check_only else SHOWN_BAD_ROWS)
        if found.bad and args.check_only:
            return 2
        if found.bad and not args.skip_bad:
            raise UserError(f"{len(found.bad):,} of {number:,} rows are bad, so nothing is written: mend them, or "
                            "leave them out with --skip_bad")
        if plan.problem:
            raise UserError(plan.problem)
        if not plan.counts:
            raise UserError("no row is left to import")
        show_counts(plan.counts, plan.categories)
        if not new:
            log("no bad rows; --check_only writes nothing")
            return 0
        bring_pictures(plan, new, options.work, args.copy, watch)
        write_description(plan, new, name, args.title, args.licence, args.citation)
    log(f"wrote {args.out}, the data set '{name}': --dataset {args.out}")
    if args.sheet:
        draw_sheet(args)
    log(f"next: python tools/check_dataset.py --dataset {args.out}; then tools/make_text_encoder.py and train.py, with "
        "--overfit 8 first (README, \"Your own data\")")
    return 0


def show_bad(bad: list[str], most: int) -> None:
    """Prints bad rows, one line each, and how many more there are."""
    for line in bad[:most]:
        log(f"bad: {' '.join(line.split())}")
    if len(bad) > most:
        log(f"bad: … and {len(bad) - most:,} more (--check_only lists all)")


def show_counts(counts: dict[str, dict[str, int]], categories: list[str]) -> None:
    """Prints what each split has, and the categories."""
    for split in (split for split in SPLITS if split in counts):
        log(f"    {split}: " + ", ".join(f"{number:,} {what}" for what, number in counts[split].items()))
    log(f"    {len(categories)} categories: {', '.join(categories[:12])}" + " …" * (len(categories) > 12))


def draw_sheet(args: argparse.Namespace) -> None:
    """Writes the contact sheet of the new data set."""
    from refer.refer import REFER
    from tools.ref_sheet import choose, draw_refs, save_sheet
    index = REFER(".", os.path.join(args.out, ""))
    refs = choose(index, SHEET_REFS, args.seed)
    save_sheet(draw_refs(index, refs), Path(args.sheet))
    log(f"{len(refs)} refs with their masks: {Path(args.sheet).resolve()}")


def main(arguments: list[str] | None = None) -> int:
    args = get_parser().parse_args(arguments)
    from distributed import user_errors  # imports PyTorch, which --help does not need
    with user_errors("import_dataset.py"):
        try:
            return run(args)
        except OSError as error:
            raise UserError(f"--out {args.out} cannot be written: {error}" + ("; --copy makes no links" if isinstance(
                error, PermissionError | NotImplementedError) or hasattr(error, "winerror") else "")) from error


if __name__ == "__main__":
    sys.exit(main())
