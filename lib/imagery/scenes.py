"""Scenes, as geographic information systems have them, read window by window through GDAL.

Shapes: H, W height and width of a scene or window in pixels, 3 for red, green and blue.
"""
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lib.imagery.gdal import check_file, gdal, open_raster
from lib.imagery.pictures import STRETCH_PERCENT, scale
from utils import UserError, log

SAMPLE_PX = 1024          # longest side of the reduced scene that percentiles and transparency are taken from
MOST_BLOCK_BYTES = 1 << 30
COLOURS = ("red", "green", "blue")
# A band is declared as opacity by many programs that write four bands. Opacity has hardly a value between its ends.
MOST_HALF_OPAQUE = 0.01


class Scene:
    """An open scene. `crop` reads a window as RGB; pixels without a value are black and not valid.

    8-bit values are read as they are. Other types are stretched: two percentiles of the valid values of a reduced
    scene, the same for all bands and windows, become black and white. A pixel has no value if the file says so (nodata,
    a mask, or a band of opacity that is 0) or if it is not finite.
    """

    def __init__(self, dataset: Any, name: str, bands: Sequence[int], percentiles: tuple[float, float]):
        self.dataset, self.name = dataset, name
        self.resources = ExitStack()   # what `close` releases
        self.size: tuple[int, int] = (dataset.width, dataset.height)
        self.transform, self.crs = dataset.transform, dataset.crs
        self.colormap = self._colours_of_palette() if not bands else None
        self.bands = tuple(bands) or self._default_bands()
        self._check()
        self.opacity = self._find_opacity()
        declared = [dataset.mask_flag_enums[band - 1] for band in self.bands]
        self.masked = self.opacity is None and any(
            "all_valid" not in (names := [flag.name for flag in flags]) and "alpha" not in names for flags in declared)
        self.limits: tuple[float, float] | None = None
        if self.kind != "uint8" or self.masked or self.opacity:
            sample = self._sample()
            if self.kind != "uint8":
                low, high = np.percentile(sample, percentiles)
                self.limits = float(low), float(high)

    @property
    def georeferenced(self) -> bool:
        """Whether the file says where on the ground its pixels are."""
        return self.crs is not None or not self.transform.is_identity or bool(self.dataset.gcps[0])

    @property
    def kind(self) -> str:
        """The type of the values, as NumPy names it."""
        return self.dataset.dtypes[self.bands[0] - 1]

    def crop(self, box: tuple[int, int, int, int]) -> tuple[Image.Image, np.ndarray | None]:
        """The window (left, top, right, bottom) as RGB, and where it has values: (H, W) bool, None for everywhere.

        Raises `UserError` if it cannot be read.
        """
        left, top, right, bottom = box
        values, valid = self._read(((top, bottom), (left, right)))
        return self._show(values, valid), valid

    def preview(self, longest_px: int) -> Image.Image:
        """The whole scene as RGB, reduced to at most `longest_px` pixels a side."""
        return self._show(*self._read(None, longest_px))

    def close(self) -> None:
        self.resources.close()

    def __enter__(self) -> "Scene":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _show(self, values: np.ndarray, valid: np.ndarray | None) -> Image.Image:
        """(3 or 1, H, W) numbers as RGB."""
        if self.colormap is not None:
            values = self.colormap[:, values[0]]
        elif self.limits is not None:
            values = scale(np.nan_to_num(values.astype(np.float32), posinf=0, neginf=0), *self.limits)
        if valid is not None:
            values = values * valid
        return Image.fromarray(np.ascontiguousarray(np.broadcast_to(values, (3, *values.shape[1:])).transpose(1, 2, 0)))

    def _read(self, window: Any, longest_px: int | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """The values of a window (all: None), reduced to `longest_px` if given: (bands, H, W), and where valid."""
        shape = {"out_shape": reduced_shape(self.size[::-1], longest_px)} if longest_px else {}
        unique = list(dict.fromkeys(self.bands))
        with gdal(self.name):
            values = self.dataset.read(unique, window=window, **{
                name: (len(unique), *sides) for name, sides in shape.items()})
            valid = None
            if self.opacity is not None:
                valid = self.dataset.read(self.opacity, window=window, **shape) > 0
            elif self.masked:
                valid = (self.dataset.read_masks(unique, window=window, **{
                    name: (len(unique), *sides) for name, sides in shape.items()}) > 0).any(axis=0)
        if len(unique) < len(self.bands):
            values = values[[unique.index(band) for band in self.bands]]
        if values.dtype.kind == "f":
            finite = np.isfinite(values).all(axis=0)
            valid = finite if valid is None else valid & finite
        return values, None if valid is None or valid.all() else valid

    def _sample(self) -> np.ndarray:
        """The valid values of the reduced scene, or of its first rows that have any. Raises `UserError` for none."""
        values, valid = self._read(None, SAMPLE_PX)
        rows = max(1, (16 << 20) // self.size[0])
        for top in range(0, self.size[1], rows):
            if valid is None or valid.any():
                break
            values, valid = self._read(((top, min(top + rows, self.size[1])), (0, self.size[0])))
        if valid is not None and not valid.any():
            raise UserError(f"{self.name} has no pixel with a value: all are nodata or transparent")
        return values if valid is None else values[:, valid]

    def _default_bands(self) -> tuple[int, ...]:
        """The bands that the file calls red, green and blue, else the first three, else the first."""
        names = [name.name for name in self.dataset.colorinterp]
        if all(names.count(colour) == 1 for colour in COLOURS):
            return tuple(names.index(colour) + 1 for colour in COLOURS)
        return (1, 2, 3) if self.dataset.count >= 3 else (1,)

    def _colours_of_palette(self) -> np.ndarray | None:
        """The colours of a scene of one band that are numbers of a palette: (3, 256) uint8."""
        if self.dataset.count != 1 or self.dataset.dtypes[0] != "uint8" \
                or self.dataset.colorinterp[0].name != "palette":
            return None
        colours = np.zeros((3, 256), np.uint8)
        for value, colour in self.dataset.colormap(1).items():
            colours[:, value] = colour[:3]
        return colours

    def _find_opacity(self) -> int | None:
        """The band that holds opacity, None if there is none.

        A band of near infrared that the writing program declared as opacity is recognised by its values.
        """
        declared = [band for band, name in enumerate(self.dataset.colorinterp, 1)
                    if name.name == "alpha" and band not in self.bands]
        for band in declared[-1:]:
            shape = tuple(min(SAMPLE_PX, side) for side in self.size[::-1])
            with gdal(self.name):
                values = self.dataset.read(band, out_shape=shape)
            top = np.iinfo(values.dtype).max if values.dtype.kind in "ui" else 1
            if ((values > 0) & (values < top)).mean() < MOST_HALF_OPAQUE:
                return band
            log(f"{self.name}: band {band} is declared as opacity, but its values are not; it is left out")
        return None

    def _check(self) -> None:
        """Raises `UserError` for bands that the scene does not have, and for what cannot be read in windows."""
        count = self.dataset.count
        if missing := [band for band in self.bands if not 1 <= band <= count]:
            raise UserError(f"{self.name} has {count} band{'s' * (count > 1)}, and no band {missing[0]}: give --bands "
                            f"one or three numbers from 1 to {count}")
        kinds = {self.dataset.dtypes[band - 1] for band in self.bands}
        if any("complex" in kind for kind in kinds):
            raise UserError(f"{self.name} cannot be read: its values are complex numbers ({min(kinds)}); write their "
                            "amplitude as a file of its own")
        if len(kinds) > 1:
            raise UserError(f"{self.name} cannot be read: its bands are of different types "
                            f"({', '.join(sorted(kinds))}); give --bands of one type")
        height, width = self.dataset.block_shapes[self.bands[0] - 1]
        if (bytes_ := height * width * np.dtype(self.kind).itemsize) > MOST_BLOCK_BYTES:
            raise UserError(f"{self.name} cannot be read: it is stored in blocks of {width} × {height} px, "
                            f"{bytes_ / 2**30:.1f} GiB each; write it in tiles: gdal_translate -co TILED=YES")


def reduced_shape(shape: Sequence[int], longest_px: float) -> tuple[int, ...]:
    """(H, W) reduced in proportion to at most `longest_px` a side, as it is for 0."""
    reduction = max(1.0, max(shape) / longest_px) if longest_px else 1.0
    return tuple(max(1, int(side / reduction)) for side in shape)


def open_scene(path: Path, bands: Sequence[int] = (), percentiles: tuple[float, float] | None = None) -> Scene:
    """Opens a file of a format in `lib.imagery.gdal.DRIVERS` as a scene, which is to be closed.

    `bands`: one or three bands, 1-based, in the order red, green, blue; by default those that the file calls so, else
    the first three. `percentiles` (0 to 100) become black and white; by default 2 and 98. Raises `UserError` if the
    file cannot be read, has fewer bands, holds complex numbers or no valid pixel, or if rasterio is not installed.
    """
    name = str(path)[:300]
    check_file(path, name)
    with ExitStack() as stack:
        # GDAL's options hold while a file is opened or read, and not as long as the scene is open: ended by the garbage
        # collector, they would end those of another scene.
        with gdal(name) as rasterio:
            dataset = stack.enter_context(open_raster(rasterio, path.resolve()))
            scene = Scene(dataset, name, bands, percentiles or STRETCH_PERCENT)
        scene.resources = stack.pop_all()
        return scene

