"""Masks over images, and sheets of panels. Colours are (red, green, blue), 0 … 255; H, W height and width in pixels."""
import io
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TRUTH_COLOUR, PREDICTION_COLOUR = (40, 200, 90), (240, 60, 160)


LONGEST_SHOWN_PX = 1024   # of an array that a notebook shows


class Shown(np.ndarray):
    """An array (H, W) or (n, H, W), bool or 0 to 1, that notebooks show in shades of grey, n side by side.

    What is computed from it is a plain array.
    """

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        array = np.asarray(array)
        return array[()] if return_scalar or not array.ndim else array

    def _repr_png_(self) -> bytes | None:
        """A PNG of at most `LONGEST_SHOWN_PX` pixels a side; None for another shape."""
        if self.ndim not in (2, 3) or not self.size:
            return None
        sheet_of_all = np.concatenate(list(np.asarray(self)), axis=1) if self.ndim == 3 else np.asarray(self)
        step = -(-max(sheet_of_all.shape) // LONGEST_SHOWN_PX)
        shades = np.clip(sheet_of_all[::step, ::step].astype(np.float32), 0, 1)
        Image.fromarray((255 * shades).round().astype(np.uint8)).save(png := io.BytesIO(), "PNG")
        return png.getvalue()


def overlay(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int] = PREDICTION_COLOUR) -> np.ndarray:
    """The image with the mask tinted inside and drawn with a solid contour.

    image (H, W, 3) uint8, mask (H, W) bool -> (H, W, 3) uint8. Pixels outside the mask are unchanged.
    """
    inside = mask.copy()
    inside[1:] &= mask[:-1]
    inside[:-1] &= mask[1:]
    inside[:, 1:] &= mask[:, :-1]
    inside[:, :-1] &= mask[:, 1:]
    drawn = image.copy()
    drawn[inside] = (0.6 * image[inside] + 0.4 * np.array(colour)).astype(np.uint8)
    drawn[mask & ~inside] = colour
    return drawn


def sheet(rows: Sequence[tuple[Sequence[Image.Image], str]], columns: int = 2, panel_px: int = 192,
          headings: Sequence[str] = ()) -> Image.Image:
    """A contact sheet of samples: the panels of each, the same number for all, with lines of text below them.

    Panels are resized to squares; longer text is cut. `headings` name the panels above the first row.
    """
    margin, font = 8, ImageFont.load_default(14)
    caption_px = 4 + 18 * max(1 + text.count("\n") for _, text in rows)
    width = max(len(panels) for panels, _ in rows) * (panel_px + margin) + margin
    height, heading_px = panel_px + caption_px + margin, 22 if headings else 0
    drawn = Image.new("RGB", (columns * width, heading_px + -(-len(rows) // columns) * height + margin), "white")
    pen = ImageDraw.Draw(drawn)
    for column, (place, heading) in product(range(min(columns, len(rows))), enumerate(headings)):
        left = column * width + margin + place * (panel_px + margin)
        pen.text((left + 2, margin), heading, fill="black", font=font)
    for number, (panels, text) in enumerate(rows):
        left, top = number % columns * width + margin, heading_px + number // columns * height + margin
        for place, panel in enumerate(panels):
            drawn.paste(panel.convert("RGB").resize((panel_px, panel_px)), (left + place * (panel_px + margin), top))
        pen.text((left + 2, top + panel_px + 2), text, fill="black", font=font)
    return drawn
