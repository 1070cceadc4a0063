"""A folder of labelme's JSON files, one beside each picture. A shape's description is its sentence."""
import base64
import io
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from refer.importers.rows import Findings, Options, Row, Shape, file_beside, shape_of
from refer.masks import LARGEST_MASK_PX
from utils import UserError, read_json

_LOOKED_AT = 5   # files of a folder, to know whether it is of labelme
CIRCLE_CORNERS = 64   # of the polygon that stands for a circle

Entry = dict[str, Any]


def read(sources: list[str], options: Options, found: Findings) -> Iterator[Row]:
    """The shapes of all files. Raises UserError if there are none, or for a file that cannot be read."""
    files = [(path, content) for path in _files(sources) if (content := _content(path))]
    if not files:
        raise UserError(f"{', '.join(sources)} holds no file of labelme, a JSON with `shapes` and `imagePath`")
    described = any(_description(shape) for _, content in files for shape in content["shapes"])
    if not described:
        found.note("no shape has a description, so the labels are the sentences; files", files[0][0])
    for path, content in files:
        for number, shapes in _objects(content["shapes"]):
            where = f"{path}, shape {number}"
            label = str(shapes[0].get("label") or "")
            sentences = [line for shape in shapes for line in (_description(shape) if described else [label])]
            if not any(sentences):
                found.note("shapes without a description, left out", where)
                continue
            try:
                yield Row(where, _picture(path, content["imagePath"], options), list(dict.fromkeys(sentences)),
                          _mask(shapes, content), category=label if described else "", size_px=_size(content))
            except ValueError as error:
                found.refuse(where, str(error))


def is_folder(path: str) -> bool:
    """Whether one of the first JSON files of a folder is of labelme."""
    for file in _files([path])[:_LOOKED_AT]:
        try:
            if _content(file):
                return True
        except UserError:
            continue
    return False


def _files(sources: list[str]) -> list[str]:
    return [str(path) for source in sources
            for path in (sorted(Path(source).rglob("*.json")) if os.path.isdir(source) else [source])]


def _content(path: str) -> Entry:
    """What is read of a file of labelme, {} of another JSON. The picture that it may hold in base64 is not kept."""
    content = read_json(path)
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list) or not isinstance(content.get("imagePath"), str) or not all(
            isinstance(shape, dict) for shape in shapes):
        return {}
    return {name: content.get(name) for name in ("imagePath", "imageWidth", "imageHeight", "shapes")}


def _description(shape: Entry) -> list[str]:
    """The lines of a shape's description."""
    text = shape.get("description")
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()] if isinstance(text, str) else []


def _objects(shapes: list[Entry]) -> Iterator[tuple[int, list[Entry]]]:
    """The objects of a file, each with the number of its first shape: shapes of one group and label are one object."""
    objects: dict[Any, tuple[int, list[Entry]]] = {}
    for number, shape in enumerate(shapes, start=1):
        group = shape.get("group_id")
        key = number if group is None else (str(group), str(shape.get("label")))
        objects.setdefault(key, (number, []))[1].append(shape)
    yield from objects.values()


def _picture(path: str, name: str, options: Options) -> str:
    """The path of a file's picture: as it says, or of that name beside it."""
    folder = options.images or os.path.dirname(path)
    wanted = file_beside(folder, name)
    beside = file_beside(folder, os.path.basename(name.replace("\\", "/")))
    return wanted if os.path.isfile(wanted) or not os.path.isfile(beside) else beside


def _size(content: Entry) -> tuple[int, int] | None:
    width, height = content.get("imageWidth"), content.get("imageHeight")
    return (width, height) if isinstance(width, int) and isinstance(height, int) and min(width, height) > 0 else None


def _mask(shapes: list[Entry], content: Entry) -> Shape:
    """The parts of one object. Raises ValueError for a shape that covers no area."""
    return Shape(json.dumps([part for shape in shapes for part in _parts(shape, content)]))


def _parts(shape: Entry, content: Entry) -> list[Any]:
    kind, points = shape.get("shape_type") or "polygon", shape.get("points")
    if not isinstance(points, list):
        raise ValueError("it has no points")
    if kind == "mask":
        return [_placed(shape.get("mask"), points, _size(content))]
    if kind == "rectangle" and len(points) == 2:
        try:
            (x1, y1), (x2, y2) = points
            return json.loads(shape_of([min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1)]).text)
        except TypeError as error:
            raise ValueError("the points of its rectangle are no numbers") from error
    if kind == "circle" and len(points) == 2:
        json.loads(shape_of([*points, points[0]]).text)   # raises ValueError unless they are points
        (x, y), (x2, y2) = points
        radius, turns = math.hypot(x2 - x, y2 - y), np.arange(CIRCLE_CORNERS) * 2 * math.pi / CIRCLE_CORNERS
        return [np.stack([x + radius * np.cos(turns), y + radius * np.sin(turns)], axis=1).ravel().tolist()]
    if kind not in ("polygon", "rectangle"):
        raise ValueError(f"it is a {kind}, which covers no area: draw a polygon, a rectangle, a circle or a mask")
    return json.loads(shape_of(points).text)


def _placed(text: Any, points: list[Any], size_px: tuple[int, int] | None) -> Entry:
    """The RLE of a shape that is a PNG, in base64, of the rectangle between two points."""
    if size_px is None:
        raise ValueError("its file lacks imageWidth and imageHeight, which a mask needs")
    width, height = size_px
    if width * height > LARGEST_MASK_PX:
        raise ValueError(f"its imageWidth and imageHeight, {width}×{height}, are more than any mask has")
    try:
        left, top = (round(side) for side in points[0])
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",)) as opened:
            if opened.width * opened.height > LARGEST_MASK_PX:
                raise ValueError("it is too large")
            pixels = np.asarray(opened)
    except Exception as error:   # damaged bytes surface as nearly any exception
        raise ValueError(f"its mask is no PNG in base64 at a point ({error})") from error
    part = pixels.reshape(*pixels.shape[:2], -1).any(axis=2)
    if left < 0 or top < 0 or left + part.shape[1] > width or top + part.shape[0] > height:
        raise ValueError(f"its mask, {part.shape[1]}×{part.shape[0]} at ({left}, {top}), reaches beyond its picture, "
                         f"which is {width}×{height}")
    whole = np.zeros((height, width), np.uint8, order="F")
    whole[top:top + part.shape[0], left:left + part.shape[1]] = part
    rle = coco_mask.encode(whole)
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
