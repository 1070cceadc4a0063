"""Data sets of one's own made from what people have: tables, COCO's JSON, labelme's folders, layers of a map.

Each kind has a module whose `read(sources, options, found)` gives rows (see `refer.importers.rows`); `build` makes a
data set of them. A new kind is a file here and a row of `KINDS`.
"""
import importlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from refer.importers.rows import Findings, Options, Row
from utils import UserError, read_json

Read = Callable[[list[str], Options, Findings], Iterator[Row]]
KINDS = {
    "table": "CSV, TSV or JSON Lines with the columns image, mask, sentence",
    "coco": "COCO's JSON with sentences in its annotations, also LabelStudio's and CVAT's",
    "labelme": "a folder of labelme's JSON files",
    "layer": "GeoJSON or GeoPackage with a column of sentences, over georeferenced --raster files"}
_LOOKED_AT = 5   # files of a folder, to know its kind
_SUFFIXES = {".csv": "table", ".tsv": "table", ".jsonl": "table", ".ndjson": "table", ".geojson": "layer",
             ".gpkg": "layer", ".shp": "layer"}


def reader(kind: str) -> Read:
    """The function that reads sources of a kind; its packages are imported only now."""
    return importlib.import_module(f"refer.importers.{kind}").read


def expand(sources: list[str]) -> list[str]:
    """The sources, and in place of a folder of CVAT's or LabelStudio's export the files of annotations in it."""
    found: list[str] = []
    for source in sources:
        folder = below if os.path.isdir(below := os.path.join(source, "annotations")) else source
        files = [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.lower().endswith(".json")] \
            if os.path.isdir(folder) else []
        is_export = any(kind_of_file(path) == "coco" for path in files[:_LOOKED_AT])
        found += [path for path in files if kind_of_file(path) == "coco"] if is_export else [source]
    return found


def kind_of(sources: list[str]) -> str:
    """The kind of the sources, by suffix and content. Raises UserError if they are of none or of several."""
    kinds: dict[str, str] = {}
    for source in sources:
        if not os.path.exists(source):
            raise UserError(f"There is no {source}: give a file or folder to import")
        kind = kind_of_folder(source) if os.path.isdir(source) else kind_of_file(source)
        if not kind:
            inside = [name for name in sorted(os.listdir(source)) if os.path.splitext(name)[1].lower() in _SUFFIXES] \
                if os.path.isdir(source) else []
            raise UserError(f"{source} is of no kind that can be imported"
                            + (f", but holds {inside[0]}: give that file. Kinds are " if inside else ": ")
                            + "; ".join(f"{name}: {words}" for name, words in KINDS.items()) + " (see --kind)")
        kinds.setdefault(kind, source)
    if len(kinds) > 1:
        raise UserError("the sources are of several kinds: " + ", ".join(f"{path} of {kind}" for kind, path in
                                                                         kinds.items()) + "; import one kind at a time")
    return next(iter(kinds))


def kind_of_folder(path: str) -> str:
    """The kind of a folder, '' if it is of none."""
    from refer.importers import labelme
    return "labelme" if labelme.is_folder(path) else ""


def kind_of_file(path: str) -> str:
    """The kind of a file by its suffix and, if it is a JSON, its content; '' if it is of none."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix != ".json" or not os.path.isfile(path):
        return _SUFFIXES.get(suffix, "")
    content: Any = read_json(path)
    if isinstance(content, list):
        return "table"
    if not isinstance(content, dict):
        return ""
    return next((kind for kind, name in (("coco", "annotations"), ("layer", "features"), ("labelme", "shapes"))
                 if isinstance(content.get(name), list)), "")
