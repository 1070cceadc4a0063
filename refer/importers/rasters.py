"""Georeferenced pictures, read in windows as 8 bits of three bands. Needs rasterio (requirements-geo.txt)."""
import os
import warnings
from types import ModuleType
from typing import Any

import numpy as np

from utils import UserError

# GDAL's drivers of single files; others, such as VRT, name further files to open.
DRIVERS = ("GTiff", "JP2OpenJPEG", "PNG", "JPEG")
INSTALL = "pip install -r requirements-geo.txt"
LOW, HIGH = 2, 98   # the percentiles that become 0 and 255
_SAMPLED_PX = 2048  # the side of the reduced raster that the percentiles are of


def load_rasterio() -> ModuleType:
    """The package, with the parts that are used. Raises UserError with the line that installs it."""
    try:
        import rasterio
        import rasterio.features
        import rasterio.warp
        import rasterio.windows
    except ImportError as error:
        raise UserError(f"layers over rasters need rasterio: {INSTALL}") from error
    return rasterio


class Raster:
    """A georeferenced picture. `width`, `height` in pixels; `transform` from columns and rows to `crs`.

    Raises UserError if the file cannot be read, is not georeferenced, or lacks one of the `bands` (numbers from 1; by
    default the first three, or the first alone).
    """

    def __init__(self, path: str, bands: tuple[int, ...] = ()):
        self.file = _opened(path)
        self.path, self.width, self.height = path, self.file.width, self.file.height
        self.crs, self.transform = self.file.crs, self.file.transform
        if not self.crs or self.transform.is_identity:
            raise UserError(f"--raster {path} is not georeferenced: export it with its coordinate system, or draw the "
                            "masks in pixels (labelme, COCO)")
        self.bands = bands or ((1, 2, 3) if self.file.count >= 3 else (1,))
        if max(self.bands) > self.file.count:
            raise UserError(f"--bands {' '.join(map(str, self.bands))}: {path} has {self.file.count} bands")
        self.bounds = self._bounds()

    @property
    def stem(self) -> str:
        """The file's name without its suffix."""
        return os.path.splitext(os.path.basename(self.path))[0]

    def _bounds(self) -> list[tuple[float, float]] | None:
        """(lowest, highest) value of each band, which become 0 and 255; None for bands of 8 bits, which stay."""
        if all(self.file.dtypes[band - 1] == "uint8" for band in self.bands):
            return None
        reduced = max(1.0, max(self.width, self.height) / _SAMPLED_PX)
        shape = (len(self.bands), max(1, round(self.height / reduced)), max(1, round(self.width / reduced)))
        sample = self.file.read(list(self.bands), out_shape=shape, masked=True)
        return [percentiles(band) for band in sample]

    def read(self, left: int, top: int, width: int, height: int) -> np.ndarray:
        """A window as (height, width, 3) uint8; black beyond the border, and where the raster has no data."""
        inside = ((top, min(top + height, self.height)), (left, min(left + width, self.width)))
        values = self.file.read(list(self.bands), window=inside, masked=True).filled(0)
        if self.bounds:
            values = np.stack([stretched(band, *bounds) for band, bounds in zip(values, self.bounds, strict=True)])
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[:values.shape[1], :values.shape[2]] = np.moveaxis(values[[0, 0, 0] if len(values) < 3 else slice(3)],
                                                                 0, 2)
        return pixels


def _opened(path: str) -> Any:
    """The open file, if one of `DRIVERS` reads it. Raises UserError."""
    rasterio = load_rasterio()
    if not os.path.isfile(path):   # GDAL would also open addresses and parts of archives
        raise UserError(f"--raster {path}: there is no such file")
    for driver in DRIVERS:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)   # is looked at below
                return rasterio.open(path, driver=driver)
        except rasterio.errors.RasterioError as error:
            problem = error
    raise UserError(f"--raster {path} cannot be read as one of {', '.join(DRIVERS)} ({problem})")


def percentiles(band: Any) -> tuple[float, float]:
    """The 2nd and the 98th percentile of a band, a masked array, without what is masked or no number."""
    values = np.ma.compressed(band)
    values = values[np.isfinite(values)]
    return (float(np.percentile(values, LOW)), float(np.percentile(values, HIGH))) if len(values) else (0.0, 1.0)


def stretched(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values of any type as uint8: `low` becomes 0, `high` 255, what lies beyond is cut off."""
    scaled = (np.nan_to_num(values.astype(np.float64), nan=low) - low) * (255 / (high - low) if high > low else 1)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
