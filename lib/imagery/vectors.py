"""Masks as outlines. Shapes: H, W height and width in pixels."""
from typing import Any

import numpy as np


def polygons(mask: np.ndarray) -> list[list[list[float]]]:
    """The outlines of a mask (H, W) bool, a list for each part: [x1, y1, x2, y2, …] of the part, then of its holes.

    Coordinates are pixels from the image's top left corner. Outlines pass through the middle of the edges of border
    pixels. An empty mask gives [].
    """
    import contourpy  # only reports and --json need it
    padded = np.pad(mask, 1).astype(np.float32)
    filled: Any = contourpy.contour_generator(z=padded, fill_type="OuterOffset").filled(0.5, np.inf)
    points, offsets = filled
    shift = 0.5 - 1   # from pixel centres to corners, less the padding
    return [[(ring[:-1] + shift).ravel().tolist() for ring in np.split(part, bounds[1:-1])]
            for part, bounds in zip(points, offsets, strict=True)]
