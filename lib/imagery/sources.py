"""What is segmented: a picture in memory, or a scene that is read window by window; both are cut into tiles.

Shapes: H, W height and width in pixels. Boxes are (left, top, right, bottom) in pixels, as in Pillow.
"""
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from lib.imagery.arrays import array_to_picture
from lib.imagery.pictures import largest_side_error, most_pixels, read_picture, to_rgb
from lib.imagery.scenes import Scene, open_scene
from utils import UserError
from utils.image_files import open_image

Box = tuple[int, int, int, int]
GEO_FORMATS = ("TIFF", "JPEG2000")   # Pillow reads them, and they may have a georeference or more than three bands
_GEO_TAGS = (33550, 33922, 34264, 34735)   # scale, tie points, transformation and keys (GeoTIFF 1.1, section 7)


class Tile(NamedTuple):
    """An RGB picture, and where it has values: (H, W) bool, or None if everywhere."""

    picture: Image.Image
    valid: np.ndarray | None


class Plain:
    """A picture in memory."""

    def __init__(self, picture: Image.Image):
        self.picture, self.size = picture, picture.size

    def crop(self, box: Box) -> Tile:
        return Tile(self.picture if box == (0, 0, *self.size) else self.picture.crop(box), None)


def open_source(image: Any, any_size: bool = False, bands: Sequence[int] = (), alpha: bool = False,
                stretch: tuple[float, float] | None = None) -> Plain | Scene:
    """A path, a Pillow image or an array as a source. A scene is to be closed by `close` or `with`.

    A file is a scene if it has a georeference, if Pillow cannot read it, or if `bands` (1-based, one or three) or
    `stretch` (two percentiles) are given; see `lib.imagery.scenes`. Arrays: see `lib.imagery.arrays`. Scenes are of any
    size; pictures have no more pixels than is safe to open, unless `any_size`.

    Raises `UserError` for a file that cannot be read, and `TypeError` or `ValueError` for anything else.
    """
    if isinstance(image, (Plain, Scene)):
        return image
    if isinstance(image, (str, Path)):
        return open_file(Path(image), any_size, bands, stretch)
    if isinstance(image, Image.Image):
        if bands:
            raise ValueError(f"bands select the channels of arrays and files, not those of a Pillow image of mode "
                             f"{image.mode}: give numpy.asarray(image)")
        return Plain(image if image.mode == "RGB" else to_rgb(image))
    return Plain(array_to_picture(image, bands, alpha))


def open_file(path: Path, any_size: bool, bands: Sequence[int], stretch: tuple[float, float] | None) -> Plain | Scene:
    """`open_source` for a file."""
    asked = bool(bands) or stretch is not None
    kind, placed = ("", False) if asked else pillow_kind(path)
    if kind and kind not in GEO_FORMATS and not has_world_file(path):
        return Plain(read_picture(path, any_size))
    try:
        scene = open_scene(path, bands, stretch)
    except UserError:
        if asked or placed or not kind:
            raise
        return Plain(read_picture(path, any_size))
    if asked or scene.georeferenced:
        return scene
    try:
        picture = read_picture(path, any_size)
    except UserError:   # 16 bits in three bands, for example
        if kind and not any_size and scene.size[0] * scene.size[1] > most_pixels():
            raise
        return scene
    scene.close()
    return Plain(picture)


def pillow_kind(path: Path) -> tuple[str, bool]:
    """The file's format in Pillow's words, '' if it knows none; and whether it is a TIFF with a georeference."""
    if not os.path.isfile(path):   # also a name that is too long; `read_picture` says what is wrong
        return "missing", False
    try:
        with open_image(path) as opened:
            return opened.format or "", any(tag in getattr(opened, "tag_v2", {}) for tag in _GEO_TAGS)
    except Image.DecompressionBombError:
        return "TIFF", False   # of any format: GDAL looks for a georeference
    except UnidentifiedImageError:
        return "", False
    except Exception:   # damaged bytes make decoders raise nearly any exception
        return "damaged", False


def has_world_file(path: Path) -> bool:
    """Whether a world file beside the picture, such as a.pgw beside a.png, places it on the ground."""
    suffix = path.suffix[1:].lower()
    return len(suffix) > 1 and any(os.path.isfile(path.with_suffix(f".{other}")) for other in
                                   (suffix[0] + suffix[-1] + "w", suffix + "w", "wld"))


def in_one_piece(source: Plain | Scene) -> Tile:
    """All of a source in one piece. Raises `UserError` if a scene has more pixels than is safe to hold."""
    if isinstance(source, Scene) and source.size[0] * source.size[1] > most_pixels():
        raise largest_side_error(source.name, source.size)
    return Tile(*source.crop((0, 0, *source.size)))
