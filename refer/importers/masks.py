"""Masks as they are given, made into RLEs of their picture's size."""
import json
from functools import lru_cache
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from refer.importers.rows import Findings, MaskPicture, Options, Shape
from refer.masks import LARGEST_MASK_PX, decode_segmentation
from utils.image_files import open_image

BORDER_PX = 1   # how far beyond its picture a polygon may reach: some tools count a pixel's far edge


def encoded(mask: MaskPicture | Shape, size_px: tuple[int, int], options: Options, found: Findings, where: str,
            may_be_empty: bool = False) -> dict[str, Any]:
    """The mask of a picture of the size (width, height): `segmentation` (an RLE), `bbox` (COCO's form) and `area`.

    Raises ValueError, saying what is wrong, for a mask that cannot be read, is empty or has another size.
    """
    pixels = _picture(mask, size_px, options, found, where) if isinstance(mask, MaskPicture) else _shape(mask, size_px)
    rle = coco_mask.encode(np.asfortranarray(pixels, np.uint8))
    area = int(coco_mask.area(rle))
    if not area and not may_be_empty:
        raise ValueError("its mask is empty" + (f": {mask.path} has no pixel of the object" if
                                                isinstance(mask, MaskPicture) else ""))
    return {"segmentation": {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")},
            "bbox": coco_mask.toBbox(rle).tolist(), "area": area}


def _picture(mask: MaskPicture, size_px: tuple[int, int], options: Options, found: Findings,
             where: str) -> np.ndarray:
    try:
        own_size, format_, pixels, values = _pixels(mask.path)
    except FileNotFoundError as error:
        raise ValueError(f"its mask {mask.path} is missing") from error
    except Exception as error:   # decoders raise nearly any exception for damaged bytes
        raise ValueError(f"its mask {mask.path} cannot be read ({error})") from error
    if own_size != size_px:
        raise ValueError(f"its mask {mask.path} is {_said(own_size)}, its picture {_said(size_px)}")
    value = options.object_value if mask.value is None else mask.value
    if value is not None:
        return pixels == value
    if options.object_above is None and format_ == "JPEG":
        raise ValueError(f"its mask {mask.path} is a JPEG, whose values are blurred near an edge: give --object_above "
                         "127, or save masks as PNG")
    if options.object_above is None and values > 2:
        found.note("masks of more than two values, of which each above 0 was taken for the object (of label maps, give "
                   "--object_value or a column `instance`)", f"{where}: {mask.path} has {values} values")
    return pixels > (options.object_above or 0)


@lru_cache(maxsize=2)   # the rows of a label map follow each other
def _pixels(path: str) -> tuple[tuple[int, int], str, np.ndarray, int]:
    """Size (width, height), format, values (H, W), and how many different values there are, up to 3.

    Of several channels, alpha left out, the largest counts. Raises whatever Pillow raises.
    """
    with open_image(path) as opened:
        if opened.width * opened.height > LARGEST_MASK_PX:
            raise ValueError(f"it has {_said(opened.size)} pixels, more than {LARGEST_MASK_PX} in all")
        bands, pixels = opened.getbands(), np.asarray(opened)
        size, format_ = opened.size, opened.format or ""
    if pixels.ndim == 3:
        pixels = pixels[..., [band not in ("A", "a") for band in bands]].max(axis=2)
    first, last = pixels.min(), pixels.max()
    return size, format_, pixels, 3 if ((pixels != first) & (pixels != last)).any() else 1 + int(first != last)


def _shape(mask: Shape, size_px: tuple[int, int]) -> np.ndarray:
    segmentation, (width, height) = json.loads(mask.text), size_px
    for part in segmentation if isinstance(segmentation, list) else ():
        if isinstance(part, list) and len(part) >= 2:
            points = np.array(part, float)
            over = max(-points.min(), points[::2].max() - width, points[1::2].max() - height)
            if over > BORDER_PX:
                raise ValueError(f"its polygon reaches {over:.0f} px beyond its picture, which is {_said(size_px)}")
    try:
        pixels = decode_segmentation(segmentation, height, width)
    except ValueError as error:
        raise ValueError(f"its mask is malformed: {error}") from error
    if pixels.shape != (height, width):
        raise ValueError(f"its mask is {_said(pixels.shape[::-1])}, its picture {_said(size_px)}")
    return pixels


def _said(size_px: tuple[int, ...]) -> str:
    return f"{size_px[0]}×{size_px[1]}"
