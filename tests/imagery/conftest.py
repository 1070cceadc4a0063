"""Scenes as rasterio writes them, for the tests of what reads and writes them."""
from pathlib import Path

import numpy as np
import pytest

COLOURS = np.random.RandomState(0).randint(0, 256, (90, 120, 3), dtype=np.uint8)
UTM31 = "EPSG:32631"


@pytest.fixture
def make_scene(tmp_path):
    """Writes a scene: make(name, bands (C, H, W), **profile) -> path. It lies in UTM zone 31, 2 m a pixel."""
    rasterio = pytest.importorskip("rasterio")

    def make(name: str, bands: np.ndarray, colours: str = "", **profile) -> Path:
        count, height, width = bands.shape
        settings = {"driver": "GTiff", "crs": UTM31, "transform": rasterio.Affine(2, 0, 500000, 0, -2, 5400000),
                    **profile}
        with rasterio.open(tmp_path / name, "w", count=count, height=height, width=width, dtype=bands.dtype,
                           **settings) as scene:
            scene.write(bands)
            if colours:
                scene.colorinterp = [rasterio.enums.ColorInterp[colour] for colour in colours.split()]
        return tmp_path / name
    return make
