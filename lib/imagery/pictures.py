"""Image files as 8-bit RGB pictures, read by Pillow. Shapes: H, W height and width in pixels."""
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from utils import UserError
from utils.image_files import DEEP_MODES, FORMATS, open_image

STRETCH_PERCENT = (2.0, 98.0)  # percentiles that become black and white in a picture of more than 8 bits

# Pillow warns of pictures half as large as those that it refuses; these are read like any other.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
_opening = Lock()


def most_pixels() -> float:
    """The number of pixels above which Pillow suspects an attack, and which a scene may not hold in one piece."""
    return 2 * Image.MAX_IMAGE_PIXELS if Image.MAX_IMAGE_PIXELS else float("inf")


def largest_side_error(name: object, size: tuple[int, int]) -> UserError:
    """The error of a picture of too many pixels."""
    return UserError(f"{name} has more pixels than is safe to open unasked ({size[0]} × {size[1]}); if you trust it, "
                     "give demo_inference.py --tile PIXELS, which reads images of any size")


def read_picture(path: str | Path | BinaryIO, any_size: bool = False, name: str = "") -> Image.Image:
    """An image file as an upright RGB image.

    Error messages call the file `name`, or its path without one. The first of several frames is read. Raises
    `UserError` if Pillow cannot read the file, or if it has so many pixels that Pillow suspects an attack, unless
    `any_size`.
    """
    name = name or str(path)[:300]
    try:
        with _open_any_size(path) if any_size else open_image(path) as opened:
            opened.load()
            ImageOps.exif_transpose(opened, in_place=True)
            return to_rgb(opened)
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} has more pixels than is safe to open unasked ({error}); if you trust it, give "
                        "demo_inference.py --tile PIXELS, which reads images of any size") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{name} cannot be read as an image: it is none of {', '.join(FORMATS)}") from error
    except Exception as error:   # damaged bytes make decoders raise nearly any exception
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"{name} cannot be read as an image: {reason or type(error).__name__}") from error


@contextmanager
def _open_any_size(path: str | Path | BinaryIO) -> Iterator[Image.Image]:
    """Opens a file without Pillow's limit, which is a global: it is lifted only while the header is read."""
    with _opening:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            opened = open_image(path)
        finally:
            Image.MAX_IMAGE_PIXELS = before
    with opened:
        yield opened


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as RGB: transparent pixels become black, and more than 8 bits are stretched to 8.

    As in map viewers, the 2nd percentile of the values becomes black and the 98th white.
    """
    if image.mode in DEEP_MODES:
        rgb = Image.fromarray(stretch(np.asarray(image))).convert("RGB")
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        rgb = Image.new("RGB", image.size)
        rgb.paste(rgba, mask=rgba.getchannel("A"))
    else:
        rgb = image if image.mode == "RGB" else image.convert("RGB")   # converting RGB would copy it
    rgb.info = {}
    return rgb


def stretch(values: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, C) numbers of any range -> same shape, uint8; infinite values and NaN count as 0."""
    values = np.nan_to_num(values.astype(np.float32), posinf=0, neginf=0)
    low, high = np.percentile(values[::max(1, len(values) // 1024)], STRETCH_PERCENT)
    return scale(values, float(low), float(high))


def scale(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Float32 numbers of any shape -> same shape, uint8: `low` becomes 0 and `high` 255."""
    return (255 * np.clip((values - low) / max(high - low, 1e-12), 0, 1)).round().astype(np.uint8)
