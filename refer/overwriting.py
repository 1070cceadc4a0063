"""Outputs of a program that name its inputs, which would be lost: found by the names of flags, for every script."""
import os
from argparse import Namespace
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any

from refer.own import DESCRIPTION, find_dataset
from utils import UserError

# By the names of flags. A script in which one means something else says so (`Parser.inputs`, `Parser.outputs`).
OUTPUTS = ("out", "target", "json", "results", "sheet", "preview", "pictures", "geojson", "gpkg")
INPUTS = ("resume", "init_from", "packed", "probe", "predictions", "first", "second", "source", "sources", "image",
          "pairs", "raster", "sentences", "images", "masks", "exclude", "config")
# What programs read in a folder that a flag names, by the ends of names.
_READ = (".safetensors", ".sha256", "predictions.json", "config.json", "tokenizer.json", ".png", ".jpg", ".jpeg",
         ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2", ".ppm", ".avif", ".vrt", ".img")
# Annotation files of a data set, in its folder; {name} is the data set's.
_ANNOTATIONS = ("refs(*).p", "grefs(*).json", "instances.json", DESCRIPTION, "{name}_*.json", "{name}_*.jsonl",
                "output_phrase_*.txt")


def refuse_overwriting(args: Namespace, inputs: tuple[str, ...] = INPUTS, outputs: tuple[str, ...] = OUTPUTS) -> None:
    """Raises `UserError` if a flag of `outputs` names what a flag of `inputs`, or the data set, is read from.

    `args` are the flags of any script.
    """
    written = [(flag, path) for flag, path in _paths(args, outputs) if os.path.exists(path)]
    if not written:
        return
    read = list(_paths(args, inputs))
    for flag, path in written:
        for other, source in read:
            if _is_read(path, source):
                raise UserError(f"--{flag} {path} is what --{other} {source} names, which is read: give another name"
                                .replace("--target", "OUT").replace("--source ", "IN "))
        if _is_of_dataset(path, args):
            raise UserError(f"--{flag} {path} is a file of the data set {args.dataset}, which is read: give another "
                            "name")


def _paths(args: Namespace, flags: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The flags that name a path, and the paths."""
    for flag in flags:
        value: Any = getattr(args, flag, None)
        for path in value if isinstance(value, list | tuple) else [value]:
            if isinstance(path, str | os.PathLike) and os.fspath(path):
                yield flag, os.fspath(path)


def _is_read(path: str, source: str) -> bool:
    """Whether an existing `path` is `source`, or a file that is read in the folder `source`."""
    try:
        if os.path.samefile(path, source):
            return True
        inside = os.path.isfile(path) and os.path.samefile(os.path.dirname(path) or ".", source)
    except (OSError, ValueError):   # the source is missing, or a name of something else
        return False
    return inside and path.lower().endswith(_READ)


def _is_of_dataset(path: str, args: Namespace) -> bool:
    """Whether an existing file is one of the data set's annotations, masks or images."""
    names, root = getattr(args, "dataset", None), getattr(args, "refer_data_root", None)
    if not names or not root or not os.path.isfile(path):
        return False
    try:
        found = find_dataset(str(names), root)
    except UserError:   # the script will say so; it reads nothing then
        return False
    folder = os.path.realpath(os.path.join(found.data_root, found.layout.folder or found.name))
    images = os.path.realpath(os.path.join(found.data_root, found.layout.image_folder))
    path = os.path.realpath(path)
    below = os.path.relpath(path, folder)
    if any(fnmatch(below, pattern.format(name=found.name)) for pattern in _ANNOTATIONS):
        return True
    masks = os.path.join(folder, found.layout.phrases.mask_folder if found.layout.phrases else "masks")
    return any(os.path.commonpath([path, place]) == place for place in (images, masks))
