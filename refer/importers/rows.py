"""What the importers share: rows, masks as they are given, options, and what is found wrong."""
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refer.masks import is_finite
from refer.own import SPLITS

EXAMPLES = 3   # shown of each kind of note
# Other spellings of the names of splits.
_SPLIT_NAMES = {**{name.lower(): name for name in SPLITS}, "training": "train", "validation": "val", "valid": "val",
                "dev": "val", "testing": "test"}


@dataclass(frozen=True, slots=True)
class MaskPicture:
    """A mask in a picture: the pixels of one value or, without one, those that the options call the object."""

    path: str
    value: int | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """A mask in COCO's form as JSON: polygons, or an RLE."""

    text: str


@dataclass(slots=True)
class Row:
    """One object of one picture with its sentences, as a source has it. An empty text stands for what it does not say.

    `size_px` is the picture's (width, height) as the source has it. Rows of one source with the same `id` or, without
    one, with the same picture and mask are one ref.
    """

    where: str   # in messages: file and row
    image: str   # path of the picture
    sentences: list[str]
    mask: MaskPicture | Shape
    split: str = ""
    category: str = ""
    id: str = ""
    group: str = ""   # pictures of one group stay in one split
    size_px: tuple[int, int] | None = None
    no_target: bool = False


@dataclass
class Options:
    """How sources are read. `work` is a folder for pictures that an importer makes."""

    work: Path
    columns: Mapping[str, str] = field(default_factory=dict)   # what a column or field is: its name
    images: str = ""   # folder of the pictures
    masks: str = ""    # folder of the masks
    sentences: str = ""   # file of the sentences of ids
    group: str = ""
    object_above: int | None = None
    object_value: int | None = None
    rasters: tuple[str, ...] = ()
    tile_px: int = 480
    bands: tuple[int, ...] = ()
    layer: str = ""
    min_visible: float = 0.5


class Findings:
    """Bad rows, one line each, and notes: what was left out or may be unexpected, counted by kind."""

    def __init__(self) -> None:
        self.bad: list[str] = []
        self.counts: dict[str, int] = defaultdict(int)
        self.examples: dict[str, list[str]] = defaultdict(list)

    def refuse(self, where: str, problem: str) -> None:
        """Adds a bad row."""
        self.bad.append(f"{where}: {problem}")

    def note(self, kind: str, example: str) -> None:
        """Counts a note of a kind; the first few examples are kept."""
        self.counts[kind] += 1
        if len(self.examples[kind]) < EXAMPLES:
            self.examples[kind].append(example)

    def lines(self) -> Iterable[str]:
        """The notes, for printing."""
        for kind, count in self.counts.items():
            yield f"{kind}: {count:,}"
            yield from (f"    {example}" for example in self.examples[kind])
            if count > EXAMPLES:
                yield f"    … and {count - EXAMPLES:,} more"


def split_name(text: str) -> str:
    """The split that a text names, '' for none. Raises ValueError for a text that names none of them."""
    wanted = text.strip().lower()
    if wanted and wanted not in _SPLIT_NAMES:
        raise ValueError(f"its split '{text.strip()[:40]}' is none of {', '.join(SPLITS)}")
    return _SPLIT_NAMES.get(wanted, "")


def split_of_file(path: str | os.PathLike) -> str:
    """The split that the name of a file ends or begins with: 'val' for roofs_val.json; '' for none."""
    words = re.split(r"[^a-z]+", Path(path).stem.lower())
    found = [_SPLIT_NAMES[word] for word in (words[-1], words[0]) if word in _SPLIT_NAMES]
    return found[0] if found else ""


def sentences_of(value: Any) -> list[str]:
    """The sentences in a value: a text, or a list of texts or of objects with `raw`, `sent`, `text` or `caption`."""
    found = []
    for entry in value if isinstance(value, list) else [value]:
        if isinstance(entry, dict):
            entry = next((entry[name] for name in ("raw", "sent", "text", "caption") if entry.get(name)), None)
        if isinstance(entry, str) and entry.strip():
            found.append(" ".join(entry.split()))
    return found


def shape_of(value: Any) -> Shape:
    """A polygon, polygons, a box [x, y, width, height] or an RLE as a `Shape`. Raises ValueError for anything else.

    A polygon is [x1, y1, x2, y2, …] or [[x1, y1], [x2, y2], …], in pixels.
    """
    if isinstance(value, dict):
        return Shape(json.dumps(value))
    if not isinstance(value, list):
        raise ValueError("its mask must be a path, a polygon, a box or an RLE")
    if _numbers(value) and len(value) == 4:
        x, y, width, height = value
        if width <= 0 or height <= 0:
            raise ValueError(f"its box must be [x, y, width, height], but has the size {width:g}×{height:g}")
        return Shape(json.dumps([[x, y, x + width, y, x + width, y + height, x, y + height]]))
    if _numbers(value) or _points(value):
        return Shape(json.dumps([_flat(value)]))
    return Shape(json.dumps([part if isinstance(part, dict) else _flat(part) for part in value]))


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(is_finite(number) and not isinstance(number, bool) for number in value)


def _points(value: list[Any]) -> bool:
    return len(value) > 0 and all(_numbers(point) and len(point) == 2 for point in value)


def _flat(polygon: Any) -> list[float]:
    """A polygon as [x1, y1, x2, y2, …]."""
    if isinstance(polygon, list) and _points(polygon):
        polygon = [number for point in polygon for number in point]
    if not _numbers(polygon) or len(polygon) < 6 or len(polygon) % 2:
        raise ValueError("its polygon must have at least 3 points, each an x and a y")
    return polygon


def file_beside(folder: str, name: str) -> str:
    """The absolute path of a file that a source names, relative to a folder; `\\` may separate folders."""
    path = os.path.abspath(os.path.join(folder, name))
    if "\\" in name and not os.path.exists(path):
        path = os.path.abspath(os.path.join(folder, name.replace("\\", "/")))
    return path
