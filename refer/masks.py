"""Segmentations as COCO and RRSIS-D store them, checked and decoded into masks. H, W: height and width in pixels."""
import math
import reprlib
from collections.abc import Sequence
from typing import TypeGuard

import numpy as np
from pycocotools import mask as coco_mask

from utils import UserError
from utils.image_files import open_image

# pycocotools walks an outline pixel by pixel with 32-bit numbers: a wild outline would exhaust memory.
_LARGEST_COORDINATE_PX = 100_000
_LONGEST_OUTLINES_PX = 2_000_000   # of all parts of a mask
LARGEST_MASK_PX = 178_956_970      # what Pillow opens of images
_MOST_DECODED_PX = 2**30           # of all parts together, where they are decoded one by one


class BadImage(UserError):
    """A ref's image, or the picture that is its mask, is missing, broken or no mask."""


def read_mask_picture(path: str, object_above: int = 0) -> np.ndarray:
    """A mask stored as a picture: (H, W) uint8 of 0 and 1, 1 where the value exceeds `object_above`.

    Of several channels the first counts; of a palette, the colours do. Raises ValueError if there is no such picture,
    it cannot be read, it has more than two values, or its values show that it means something else: all are at most
    `object_above` though not all are 0, or another channel has the object.
    """
    try:
        with open_image(path) as opened:
            shown = {"1": "L", "P": "RGB", "PA": "RGBA"}.get(opened.mode)   # 1 bit and palettes as they look
            pixels = np.asarray(opened.convert(shown) if shown else opened)
    except FileNotFoundError as error:
        raise ValueError(f"its mask {path} is missing") from error
    except Exception as error:   # decoders raise nearly any exception for damaged bytes
        raise ValueError(f"its mask {path} cannot be read ({error})") from error
    channels = pixels if pixels.ndim == 3 else pixels[..., None]
    pixels = channels[..., 0]
    values = np.unique(pixels)
    if len(values) > 2:
        raise ValueError(f"its mask {path} has {len(values)} different values: a mask has two at most, so this is "
                         "some other picture")
    if 0 < values[-1] <= object_above:
        raise ValueError(f"its mask {path} has no value above {object_above}, which the object has in this format, but "
                         f"values of {values[-1]}: multiply them, to 0 and 255")
    if len(values) == 1 and any(len(np.unique(other)) > 1 for other in np.moveaxis(channels[..., 1:], -1, 0)):
        raise ValueError(f"its mask {path} is {values[0]} everywhere in its first channel, the only one that is read, "
                         "but another channel varies: save the mask as one channel of 0 and 255")
    return (pixels > object_above).astype(np.uint8)


def decode_segmentation(
    segmentation: list | dict | None, height: int | None, width: int | None, drop_overlaps: bool = False,
    most_px: int = LARGEST_MASK_PX,
) -> np.ndarray:
    """The union of a COCO segmentation's parts, (H, W) uint8 of 0 and 1, in Fortran order.

    `drop_overlaps` leaves out pixels that lie in several parts, as the original code does by accident.

    A part is a polygon [x1, y1, x2, y2, ...] in pixels, or an RLE {"size": [H, W], "counts": ...} whose
    counts are a list (uncompressed), str or bytes (compressed). One RLE needs no list around it.
    H, W are the size of the RLEs, or else the image's `height` and `width`. Nothing, a polygon of fewer
    than three points and an RLE without counts cover no pixel.

    Raises ValueError, which says what is wrong. Everything is checked here, because pycocotools checks nothing: if the
    counts of an RLE cover fewer pixels than its size has, for example, it returns uninitialised memory.
    """
    parts = [segmentation] if isinstance(segmentation, dict) else segmentation or []
    if not isinstance(parts, list | tuple):
        raise ValueError(f"it must be a list of polygons or RLEs, or one RLE, but is {reprlib.repr(parts)}")
    encoded, outlines_px = [], 0.0
    for number, part in enumerate(parts, start=1):
        if isinstance(part, dict):
            encoded.append(_checked_rle(part, most_px))
        elif isinstance(part, list | tuple):
            _checked_size(height, width, most_px)
            if len(part) % 2:
                raise ValueError(
                    f"part {number} is a polygon of {len(part)} numbers: they come in pairs x, y"
                )
            if not all(is_finite(value) and abs(value) <= _LARGEST_COORDINATE_PX for value in part):
                raise ValueError(f"part {number} is a polygon with something that is no coordinate")
            outlines_px += _outline_px(part)
            if outlines_px > _LONGEST_OUTLINES_PX:
                raise ValueError(f"its outlines are longer than {_LONGEST_OUTLINES_PX} pixels in all")
            if len(part) >= 6:
                encoded += coco_mask.frPyObjects([list(part)], height, width)
        else:
            raise ValueError(f"part {number} must be a polygon or an RLE, but is {reprlib.repr(part)}")
    if not encoded:
        return np.zeros(_checked_size(height, width, most_px), np.uint8, order="F")
    sizes = {tuple(rle["size"]) for rle in encoded}
    if len(sizes) > 1:
        raise ValueError(f"its parts have different sizes (H, W) {sorted(sizes)} and cannot be united")
    if drop_overlaps:
        return _covered_once(encoded)
    # By default `merge` makes the union.
    return coco_mask.decode(encoded[0] if len(encoded) == 1 else coco_mask.merge(encoded))


def _outline_px(polygon: Sequence[float]) -> float:
    """The number of pixels that an outline passes."""
    points = np.array(polygon, dtype=float).reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()) if len(points) else 0.0


def _covered_once(encoded: list[dict]) -> np.ndarray:
    """The pixels that lie in exactly one of some RLEs of one size (H, W): (H, W) uint8, in Fortran order."""
    height, width = encoded[0]["size"]
    if len(encoded) * height * width > _MOST_DECODED_PX:
        raise ValueError(f"its {len(encoded)} parts of {height}x{width} pixels are too many")
    covered, again = (np.zeros((height, width), bool, order="F") for _ in range(2))
    for rle in encoded:
        part = coco_mask.decode(rle).astype(bool)
        again |= covered & part
        covered |= part
    return (covered & ~again).astype(np.uint8)


def _checked_rle(rle: dict, most_px: int) -> dict:
    """The RLE in pycocotools' compressed form, its run lengths known to cover its size exactly."""
    size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(size, list | tuple) or len(size) != 2:
        raise ValueError(f"the size of an RLE must be [height, width], but is {reprlib.repr(size)}")
    height, width = size
    _checked_size(height, width, most_px)
    if isinstance(counts, str):
        counts = counts.encode()
    if not isinstance(counts, bytes | list):
        raise ValueError(f"the counts of an RLE must be a list or a string, but are {reprlib.repr(counts)}")
    if not counts:
        counts = [height * width]
    runs = _run_lengths(counts) if isinstance(counts, bytes) else counts
    if not all(isinstance(run, int) for run in runs) or min(runs) < 0:
        raise ValueError("the counts of an RLE hold something that is not the length of a run of pixels")
    if sum(runs) != height * width:
        covered = f"{sum(runs)} pixels, but its size {height}x{width} has {height * width}"
        raise ValueError(f"the counts of an RLE cover {covered}")
    if isinstance(counts, bytes):
        return {"size": [height, width], "counts": counts}
    return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)


def _run_lengths(counts: bytes) -> list[int]:
    """The run lengths in COCO's compressed counts, possibly negative if these are damaged.

    A character less 48 is six bits: five of a number, lowest first, and one that says that more follow; the
    top bit of the last five is the sign. From the fourth number on, each is a difference to the last but one.
    """
    digits = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if digits.min() < 0 or digits.max() > 63:
        raise ValueError("the counts of an RLE hold a character that compressed counts do not use")
    is_last = (digits & 32) == 0
    starts = np.concatenate([[0], np.flatnonzero(is_last) + 1])
    if starts[-1] != digits.size:
        raise ValueError("the counts of an RLE are cut off")
    lengths = np.diff(starts)
    if lengths.max() > 7:  # 35 bits: more than any mask needs
        raise ValueError("the counts of an RLE hold a number larger than any mask")
    shifts = 5 * (np.arange(digits.size) - np.repeat(starts[:-1], lengths))
    numbers = np.add.reduceat((digits & 31) << shifts, starts[:-1])
    numbers -= np.where(digits[is_last] & 16, np.int64(1) << (5 * lengths), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers.tolist()


def _checked_size(height: object, width: object, most_px: int) -> tuple[int, int]:
    """The size (H, W) in pixels. Raises ValueError unless both are numbers of pixels, `most_px` in all at most."""
    if not (isinstance(height, int) and isinstance(width, int) and min(height, width) >= 1):
        raise ValueError(f"its size must be a height and a width in pixels, but is {height!r} and {width!r}")
    if height * width > most_px:
        raise ValueError(f"its size must be a height and a width in pixels, {most_px} in all at most, but is "
                         f"{height!r} and {width!r}")
    return height, width


def is_finite(value: object) -> TypeGuard[int | float]:
    """Whether a value of unknown type is a finite number."""
    return isinstance(value, int | float) and abs(value) < math.inf
