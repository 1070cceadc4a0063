"""Georeferenced pictures that layers lie on. `lib.imagery` reads them, with the colours that a prediction sees."""
import os
from pathlib import Path

import numpy as np

from lib.imagery.scenes import open_scene
from utils import UserError


class Raster:
    """A georeferenced picture. `width`, `height` in pixels; `transform` from columns and rows to `crs`.

    `bands` are one or three numbers from 1; see `lib.imagery.scenes.open_scene`. Raises UserError if the file cannot be
    read, lacks one of the bands or is not georeferenced.
    """

    def __init__(self, path: str, bands: tuple[int, ...] = ()):
        self.path, self.scene = path, open_scene(Path(path), bands)
        self.width, self.height = self.scene.size
        self.crs, self.transform = self.scene.crs, self.scene.transform
        if not self.crs or self.transform.is_identity:
            self.scene.close()
            raise UserError(f"--raster {path} is not georeferenced: export it with its coordinate system, or draw the "
                            "masks in pixels (labelme, COCO)")

    @property
    def stem(self) -> str:
        """The file's name without its suffix."""
        return os.path.splitext(os.path.basename(self.path))[0]

    def read(self, left: int, top: int, width: int, height: int) -> np.ndarray:
        """A window as (height, width, 3) uint8; black beyond the border, and where the raster has no data."""
        inside, _ = self.scene.crop((left, top, min(left + width, self.width), min(top + height, self.height)))
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[:inside.height, :inside.width] = np.asarray(inside)
        return pixels
