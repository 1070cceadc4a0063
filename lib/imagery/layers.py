"""Masks and probabilities as files: PNG for a picture, GeoTIFF on the same grid for a scene.

Layers are written from top to bottom, under a temporary name that becomes the final one at the end. Shapes: H, W height
and width in pixels.
"""
import os
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lib.imagery.gdal import gdal, one_line
from lib.imagery.scenes import Scene, reduced_shape
from utils import UserError
from utils.files import temporary_beside

BLOCK_PX = 256


class GeoLayer:
    """A GeoTIFF of one band on a scene's grid: in tiles, compressed, no value of it means nodata.

    `kind` is 'uint8' for masks or 'float16' for probabilities, which many programs show as float32. A context: the file
    `path` exists in full after it, or, after an error, not at all. Raises `UserError` if it cannot be written.
    """

    def __init__(self, path: Path, scene: Scene, kind: str = "uint8"):
        self.path, self.kind = path, kind
        self.temporary = temporary_beside(path)
        self._waiting = np.zeros((0, scene.size[0]), np.uint8 if kind == "uint8" else np.float32)
        self._top, self._total, self._scene = 0, 0.0, scene
        self._stack = ExitStack()

    def __enter__(self) -> "GeoLayer":
        scene, place = self._scene, {}
        if scene.dataset.gcps[0]:
            place = {"gcps": scene.dataset.gcps[0], "crs": scene.dataset.gcps[1]}
        elif scene.georeferenced:
            place = {"transform": scene.transform, "crs": scene.crs}
        with self._stack as stack:
            stack.callback(self._clean_up)
            rasterio = stack.enter_context(gdal(str(self.path)))
            with one_line(str(self.path), "cannot be written"):
                self._dataset = stack.enter_context(rasterio.open(
                    self.temporary, "w", driver="GTiff", width=scene.size[0], height=scene.size[1], count=1,
                    dtype="uint8" if self.kind == "uint8" else "float32", tiled=True, blockxsize=BLOCK_PX,
                    blockysize=BLOCK_PX, compress="deflate", bigtiff="if_safer",
                    **({} if self.kind == "uint8" else {"nbits": 16, "predictor": 3}), **place))
            self._stack = stack.pop_all()
        return self

    def write(self, rows: np.ndarray) -> None:
        """Appends rows (any number, W) of the layer's type. Whole rows of tiles are written, each tile once."""
        self._total += float(rows.sum(dtype=np.float64))
        self._waiting = np.concatenate([self._waiting, rows.astype(self._waiting.dtype)])
        self._flush(len(self._waiting) // BLOCK_PX * BLOCK_PX)

    def _flush(self, count: int) -> None:
        """Writes the first `count` of the waiting rows."""
        for first in range(0, count, BLOCK_PX):
            rows = self._waiting[first:min(first + BLOCK_PX, count)]
            with one_line(str(self.path), "cannot be written"):
                self._dataset.write(rows, 1, window=((self._top, self._top + len(rows)), (0, rows.shape[1])))
            self._top += len(rows)
        self._waiting = self._waiting[count:]

    def finish(self) -> Path:
        """Completes the temporary file and returns its path; it can be read until the context ends."""
        if not self._dataset.closed:
            self._flush(len(self._waiting))
            with one_line(str(self.path), "cannot be written"):
                self._dataset.close()
            self._verify()
        return self.temporary

    def read(self, longest_px: float = 0) -> np.ndarray:
        """All that was written, reduced to at most `longest_px` pixels a side if given: (H, W)."""
        with gdal(str(self.path)) as rasterio, rasterio.open(self.finish()) as written:
            return written.read(1, out_shape=reduced_shape(written.shape, longest_px))

    def _verify(self) -> None:
        """Raises `UserError` if the file is not what was written: GDAL does not report every error of a full disk."""
        name, what = str(self.path), "cannot be written"
        with gdal(name) as rasterio, one_line(name, what), rasterio.open(self.temporary) as written:
            total = sum(float(written.read(1, window=window).sum(dtype=np.float64))
                        for _, window in written.block_windows(1))
        if abs(total - self._total) > 2e-3 * self._total + 1e-3:   # float16 rounds to 0.05 %
            raise UserError(f"{self.path} cannot be written in full: is the disk full?")

    def __exit__(self, kind: Any, *error: Any) -> None:
        try:
            if kind is None:
                self.finish()
                with one_line(str(self.path), "cannot be written"):
                    os.replace(self.temporary, self.path)
        finally:
            with suppress(Exception):
                self._stack.close()

    def _clean_up(self) -> None:
        """Removes the temporary file, if there is one."""
        for leftover in (self.temporary, self.temporary.with_name(self.temporary.name + ".aux.xml")):
            with suppress(OSError):
                leftover.unlink()


class PlainLayer:
    """A PNG of one band, as `GeoLayer` but held in memory; probabilities 0 … 1 become 0 … 255."""

    def __init__(self, path: Path, kind: str = "uint8"):
        self.path, self.kind = path, kind
        self.temporary = temporary_beside(path)
        self._rows: list[np.ndarray] = []

    def __enter__(self) -> "PlainLayer":
        return self

    def write(self, rows: np.ndarray) -> None:
        """Appends rows (any number, W)."""
        self._rows.append(rows if self.kind == "uint8" else (255 * rows).round().astype(np.uint8))

    def read(self, longest_px: float = 0) -> np.ndarray:
        """All rows (H, W) uint8; a picture is never reduced."""
        if len(self._rows) > 1:
            self._rows = [np.concatenate(self._rows)]
        return self._rows[0]

    def finish(self) -> Path:
        """Writes the temporary file and returns its path."""
        if not self.temporary.exists():
            save_picture(Image.fromarray(self.read()), self.temporary)
        return self.temporary

    def __exit__(self, kind: Any, *error: Any) -> None:
        try:
            if kind is None:
                os.replace(self.finish(), self.path)
        except OSError as problem:
            raise UserError(f"{self.path} cannot be written: {problem.strerror or problem}") from problem
        finally:
            with suppress(OSError):
                self.temporary.unlink()


def save_picture(picture: Image.Image, path: Path) -> None:
    """Writes a PNG under a temporary name that becomes `path`. Raises `UserError` if it cannot be written."""
    temporary = temporary_beside(path)
    try:
        picture.save(temporary, "PNG")
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
