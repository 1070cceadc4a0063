"""Arrays as pictures. An array does not say what its numbers mean, so only unmistakable ones are accepted.

Shapes: H, W height and width in pixels, C channels.
"""
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from lib.imagery.pictures import to_rgb

ACCEPTED = ("a path, a Pillow image, an array (H, W) or (H, W, 3) of uint8 or of floats from 0 to 1, or a tensor "
            "(3, H, W) of such numbers")


def array_to_picture(pixels: Any, bands: Sequence[int] = (), alpha: bool = False) -> Image.Image:
    """(H, W), (H, W, 1), (H, W, 3) or, with `bands` or `alpha`, (H, W, C): uint8, or float 0 … 1 -> an RGB image.

    `bands` are one or three channels, 1-based, in the order red, green, blue. `alpha` declares the fourth of four
    channels as opacity; transparent pixels become black.

    Raises `TypeError` for another type and `ValueError` for another shape or range, in one line without the content.
    """
    if not isinstance(pixels, np.ndarray):
        raise TypeError(f"an image must be {ACCEPTED}; it is {describe(pixels)}")
    if not (pixels.dtype == np.uint8 or pixels.dtype.kind == "f"):
        raise TypeError(f"an image array must hold uint8, or floats from 0 to 1; it is {describe(pixels)}: scale it to "
                        "one of them, or give the file's path, whose values are stretched")
    if pixels.ndim == 3 and pixels.shape[2] == 1 and not bands:
        pixels = pixels[..., 0]
    if pixels.ndim not in (2, 3) or not pixels.size:
        raise ValueError(f"an image array must be (H, W) or (H, W, 3), none of them 0; it is {describe(pixels)}")
    if bands:
        pixels = select(pixels, bands)
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if channels == 4 and not alpha:
        raise ValueError(f"an array of four channels needs bands=(1, 2, 3), if the fourth is near infrared, or "
                         f"alpha=True, if it is opacity; it is {describe(pixels)}")
    if channels not in (1, 3, 4):
        raise ValueError(f"an image array must be (H, W) or (H, W, 3), or (H, W, C) with bands=(R, G, B); it is "
                         f"{describe(pixels)}")
    if pixels.dtype != np.uint8:
        if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(f"floats of an image array must be finite and from 0 to 1; it is {describe(pixels)}: "
                             "divide 0 … 255 by 255, or give uint8")
        pixels = (pixels.astype(np.float32) * 255).round().astype(np.uint8)
    return to_rgb(Image.fromarray(np.ascontiguousarray(pixels)))


def select(pixels: np.ndarray, bands: Sequence[int]) -> np.ndarray:
    """The channels `bands` (1-based, one or three) of an array: (H, W, C) -> (H, W) or (H, W, 3)."""
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if len(bands) not in (1, 3) or not all(isinstance(band, (int, np.integer)) and 1 <= band <= channels
                                           for band in bands):
        raise ValueError(f"bands must be one or three numbers from 1 to {channels}, but are {str(tuple(bands))[:60]}")
    chosen = np.atleast_3d(pixels)[..., [band - 1 for band in bands]]
    return chosen[..., 0] if len(bands) == 1 else chosen


def describe(value: Any) -> str:
    """Type, shape and range of a value, never its content: 'an array (4, 5) of float64 from -1 to 7'."""
    if not isinstance(value, np.ndarray):
        length = f" of length {len(value)}" if isinstance(value, (bytes, bytearray, list, tuple, dict, set)) else ""
        return f"of type {type(value).__module__}.{type(value).__qualname__}{length}".replace("builtins.", "")
    said = f"an array {value.shape} of {value.dtype.name}"
    if value.dtype.kind not in "uif" or not value.size:
        return said
    if not np.isfinite(value).all():
        return f"{said} with NaN or infinite values"
    return f"{said} from {value.min():g} to {value.max():g}"
