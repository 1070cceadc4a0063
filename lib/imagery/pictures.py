"""Image files and arrays as 8-bit RGB pictures. Shapes: H, W height and width in pixels."""
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lib.imagery.georeference import GeoTags, geo_tags
from utils import UserError

STRETCH_PERCENT = (2.0, 98.0)  # percentiles that become black and white in a picture of more than 8 bits


def read_picture(path: str | Path | BinaryIO, any_size: bool = False, name: str = "") -> Image.Image:
    """An image file as an upright RGB image; its `info["geo_tags"]` holds a georeferenced TIFF's tags, if any.

    Error messages call the file `name`, or its path without one. The first of several frames is read. A georeferenced
    picture is not rotated, because its tags would become wrong.
    Raises `UserError` if Pillow cannot read the file, or if it has so many pixels that Pillow suspects an attack,
    unless `any_size`.
    """
    try:
        with _pixel_limit(None if any_size else Image.MAX_IMAGE_PIXELS), Image.open(path) as opened:
            tags = geo_tags(opened)
            opened.load()
            if not tags:
                ImageOps.exif_transpose(opened, in_place=True)
            return to_rgb(opened, tags)
    except Image.DecompressionBombError as error:
        raise UserError(f"{name or path} has more pixels than is safe to open unasked ({error}); if you trust it, give "
                        "demo_inference.py --tile PIXELS, which reads images of any size") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{name or path} cannot be read as an image: it is of no format that Pillow knows") from error
    except Exception as error:   # damaged bytes make decoders raise nearly any exception
        raise UserError(f"{name or path} cannot be read as an image: {error or type(error).__name__}") from error


class _pixel_limit:
    """A context in which Pillow opens images of up to `pixels` pixels (None: of any size) without a warning."""

    def __init__(self, pixels: int | None):
        self.pixels, self.warnings = pixels, warnings.catch_warnings()

    def __enter__(self) -> None:
        self.before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, self.pixels
        self.warnings.__enter__()
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)

    def __exit__(self, *error: Any) -> None:
        Image.MAX_IMAGE_PIXELS = self.before
        self.warnings.__exit__(*error)


def to_rgb(image: Image.Image, tags: GeoTags | None = None) -> Image.Image:
    """Any Pillow image as RGB: transparent pixels become black, and more than 8 bits are stretched to 8.

    As in map viewers, the 2nd percentile of the values becomes black and the 98th white.
    """
    if image.mode in ("I", "F", "I;16", "I;16B", "I;16L", "I;16N"):
        rgb = Image.fromarray(stretch(np.asarray(image))).convert("RGB")
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        rgb = Image.new("RGB", image.size)
        rgb.paste(rgba, mask=rgba.getchannel("A"))
    else:
        rgb = image if image.mode == "RGB" else image.convert("RGB")   # converting RGB would copy it
    rgb.info = {"geo_tags": tags} if tags else {}
    return rgb


def stretch(values: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, C) numbers of any range -> same shape, uint8; infinite values and NaN count as 0."""
    values = np.nan_to_num(values.astype(np.float32), posinf=0, neginf=0)
    low, high = np.percentile(values[::max(1, len(values) // 1024)], STRETCH_PERCENT)
    return (255 * np.clip((values - low) / max(float(high - low), 1e-12), 0, 1)).round().astype(np.uint8)


def array_to_picture(pixels: np.ndarray) -> Image.Image:
    """(H, W), (H, W, 1), (H, W, 3) or (H, W, 4) numbers -> an RGB image; other types than uint8 are stretched.

    Raises `ValueError` for another shape.
    """
    pixels = np.asarray(pixels)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)) or not pixels.size:
        raise ValueError(f"an image array must be (H, W), (H, W, 3) or (H, W, 4), but is {pixels.shape}")
    if pixels.dtype != np.uint8:
        pixels = stretch(pixels)
    return to_rgb(Image.fromarray(np.ascontiguousarray(pixels)))
