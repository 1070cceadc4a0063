"""Masks as outlines, and as features of a vector file. Shapes: H, W height and width in pixels."""
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lib.imagery.gdal import gdal, need_rasterio
from lib.imagery.objects import Found
from utils import UserError
from utils.files import temporary_beside

Rings = list[np.ndarray]   # the outline (vertices, 2) of a part, the first vertex repeated at the end; then its holes'

LONGEST_EDGE_PX = 32       # of outlines that another coordinate system bends
EQUAL_AREA, WEB_MERCATOR = "EPSG:6933", 3857
# Formats of vector files, by suffix: GDAL's driver and its options. GeoJSON is longitude and latitude (RFC 7946).
FORMATS: dict[str, tuple[str, dict[str, str]]] = {
    ".geojson": ("GeoJSON", {"RFC7946": "YES", "WRITE_BBOX": "YES"}), ".gpkg": ("GPKG", {})}


class Feature(NamedTuple):
    """An object of a sentence; `rings` are (column, row) of pixels' corners, `area` is in m², None without a CRS."""

    sentence: str
    pixels: int
    area: float | None
    mean_probability: float
    rings: Rings


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


def outlines(path: Path) -> Iterator[tuple[int, Rings]]:
    """The objects of a mask's GeoTIFF: the first pixel of each, as in `Objects`, and its outline along pixels' edges.

    Coordinates are (column, row) of pixels' corners. Rows are read one after the other.
    """
    with gdal(str(path)) as rasterio, rasterio.open(path) as layer:
        band, width, to_pixels = rasterio.band(layer, 1), layer.width, ~layer.transform
        for shape, _ in rasterio.features.shapes(band, mask=band, connectivity=4):   # in the layer's coordinates
            rings = [placed(np.asarray(ring, np.float64), to_pixels).round() for ring in shape["coordinates"]]
            row = rings[0][:, 1].min()
            column = rings[0][rings[0][:, 1] == row, 0].min()
            yield int(row) * width + int(column), rings


def features(path: Path, found: dict[int, Found], sentence: str, transform: Any, crs: Any, min_area: float = 0,
             simplify_px: float = 0) -> list[Feature]:
    """The objects of a mask's GeoTIFF `path` with an area of at least `min_area`, outlines simplified by `simplify_px`.

    `found` is what `Objects` collected of the same mask; `transform` and `crs` are the scene's, as rasterio has them.
    The area is that of the object's pixels, in m² (`min_area`, too) or, without a CRS, in pixels.
    """
    made = []
    for first, corners in outlines(path):
        inside = found[first]
        area = area_of(corners, inside.pixels, transform, crs)
        if (inside.pixels if area is None else area) < min_area:
            continue
        made.append(Feature(sentence, inside.pixels, area, inside.mean_probability,
                            simplified(corners, simplify_px) if simplify_px else corners))
    return made


def placed(ring: np.ndarray, transform: Any) -> np.ndarray:
    """Pixels' corners (vertices, 2) as coordinates of the scene, or back, for the inverse transform."""
    columns, rows = ring.T
    return np.stack([transform.c + transform.a * columns + transform.b * rows,
                     transform.f + transform.d * columns + transform.e * rows], axis=1)


def area_of(rings: Rings, pixels: int, transform: Any, crs: Any) -> float | None:
    """The area in m² of an outline along pixels' edges, None without a CRS.

    In a projected CRS it is the area in the plane of the map. In degrees, and in Web Mercator, whose metres are not
    those of the ground, it is the area on the ellipsoid: that of a cylindrical equal-area projection, which maps
    parallels and meridians to straight lines.
    """
    if crs is None:
        return None
    if not crs.is_geographic and crs.to_epsg() != WEB_MERCATOR:
        return pixels * abs(transform.determinant) * crs.linear_units_factor[1] ** 2
    warp = need_rasterio("the area of an object").warp
    areas = []
    for ring in rings:
        x, y = placed(denser(ring), transform).T
        x, y = map(np.asarray, warp.transform(crs, EQUAL_AREA, x - x[0], y))   # across 180° without a leap
        areas.append(abs(float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum())) / 2)
    return areas[0] - sum(areas[1:])


def denser(ring: np.ndarray) -> np.ndarray:
    """The same outline (vertices, 2) with vertices added so that no edge is longer than `LONGEST_EDGE_PX`."""
    counts = np.ceil(np.abs(np.diff(ring, axis=0)).max(axis=1) / LONGEST_EDGE_PX).astype(int).clip(1)
    starts = np.repeat(np.arange(len(counts)), counts)
    share = (np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)) / counts[starts]
    between = ring[starts] + share[:, None] * np.diff(ring, axis=0)[starts]
    return np.concatenate([between, ring[-1:]])


def simplified(rings: Rings, tolerance: float) -> Rings:
    """The outline with fewer vertices, at most `tolerance` from the original (Douglas and Peucker).

    The tolerance is halved until no edges cross; holes that vanish are left out.
    """
    while tolerance > 0.1:
        reduced = [kept for ring in rings if len(kept := reduce(ring, tolerance)) > 3]
        if reduced and len(reduced[0]) > 3 and len(reduce(rings[0], tolerance)) > 3 and not edges_cross(reduced):
            return reduced
        tolerance /= 2
    return rings


def reduce(ring: np.ndarray, tolerance: float) -> np.ndarray:
    """Douglas and Peucker's vertices of a closed outline (vertices, 2); the first and the farthest one stay."""
    far = int(((ring - ring[0]) ** 2).sum(axis=1).argmax())
    kept, parts = np.zeros(len(ring), bool), [(0, far), (far, len(ring) - 1)]
    kept[[0, far, -1]] = True
    while parts:
        first, last = parts.pop()
        if last - first < 2:
            continue
        along = ring[last] - ring[first]
        inside = ring[first + 1:last] - ring[first]
        off = np.abs(inside[:, 0] * along[1] - inside[:, 1] * along[0]) / max(float(np.hypot(*along)), 1e-9)
        if off.max() > tolerance:
            middle = first + 1 + int(off.argmax())
            kept[middle] = True
            parts += [(first, middle), (middle, last)]
    return ring[kept]


def edges_cross(rings: Rings) -> bool:
    """Whether two edges of the outlines, which are no neighbours, touch or cross."""
    begins, ends = (np.concatenate([ring[part] for ring in rings]) for part in (slice(None, -1), slice(1, None)))

    def side(of: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        return np.sign((end[..., 0] - start[..., 0]) * (of[..., 1] - start[..., 1])
                       - (end[..., 1] - start[..., 1]) * (of[..., 0] - start[..., 0]))

    order = np.minimum(begins, ends)[:, 0].argsort(kind="stable")   # edges that begin to the right of another's end
    begins, ends = begins[order], ends[order]                        # cannot touch it
    after = np.searchsorted(np.minimum(begins, ends)[:, 0], np.maximum(begins, ends)[:, 0], "right")
    for place, (start, end) in enumerate(zip(begins, ends, strict=True)):
        other, stop = begins[place + 1:after[place]], ends[place + 1:after[place]]
        apart = (np.maximum(other, stop) < np.minimum(start, end)).any(1) | \
            (np.minimum(other, stop) > np.maximum(start, end)).any(1)
        neighbours = (other == end).all(1) | (stop == start).all(1)
        crossing = (side(other, start, end) * side(stop, start, end) <= 0) & \
            (side(start, other, stop) * side(end, other, stop) <= 0)
        if (crossing & ~apart & ~neighbours).any():
            return True
    return False


def write_features(path: Path, form: tuple[str, dict[str, str]], made: list[Feature], transform: Any,
                   crs: Any) -> None:
    """Writes one feature for each object, atomically, in a format of `FORMATS`.

    `transform` and `crs` are the scene's, as rasterio has them.

    GeoPackage has the scene's coordinates, and the bounds of each object as fields; GeoJSON has longitude and latitude,
    and the bounds as `bbox`. Raises `UserError` without a CRS for GeoJSON, if pyogrio is not installed, or if the file
    cannot be written.
    """
    driver, options = form
    if driver == "GeoJSON" and crs is None:
        raise UserError(f"{path} cannot be written: GeoJSON needs longitude and latitude, and the scene has no "
                        "coordinate reference system; give --gpkg instead")
    pyogrio = need_pyogrio(str(path))
    fields: dict[str, Any] = {"sentence": [feature.sentence for feature in made],
                              "pixels": np.array([feature.pixels for feature in made], np.int64),
                              "mean_probability": [round(feature.mean_probability, 4) for feature in made]}
    if crs is not None:
        fields["area_m2"] = [round(feature.area or 0.0, 3) for feature in made]
    bend = denser if driver == "GeoJSON" else np.asarray   # edges that are straight on the map are bent on the globe
    shapes = [[placed(bend(ring), transform) for ring in feature.rings] for feature in made]
    if driver == "GPKG":
        bounds = np.array([[*rings[0].min(0), *rings[0].max(0)] for rings in shapes]).reshape(-1, 4)
        fields |= dict(zip(("min_x", "min_y", "max_x", "max_y"), bounds.T, strict=True))
    kinds = {"sentence": object, "pixels": np.int64}
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")   # of the missing CRS
            pyogrio.raw.write(temporary, np.array([wkb(rings) for rings in shapes], object),
                              [np.asarray(values, kinds.get(name, np.float64)) for name, values in fields.items()],
                              list(fields), layer="objects", driver=driver, geometry_type="Polygon",
                              crs=crs.to_wkt() if crs is not None else None, layer_options=options)
        if (written := pyogrio.read_info(temporary, force_feature_count=True)["features"]) != len(made):
            raise UserError(f"{path} cannot be written in full ({written} of {len(made)} objects): is the disk full?")
        os.replace(temporary, path)
    except (OSError, RuntimeError, UserError) as error:
        for leftover in path.parent.glob(f"{temporary.name}*"):   # a GeoPackage has a journal
            with suppress(OSError):
                leftover.unlink()
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be written: {' '.join(str(error).split())[:300]}") from error


def need_pyogrio(name: str) -> Any:
    """The package pyogrio. Raises `UserError` in one line if it is not installed."""
    try:
        import pyogrio
    except ImportError as error:
        raise UserError(f"{name} needs the package pyogrio, for vector files: pip install -r "
                        "requirements-geo.txt") from error
    return pyogrio


def wkb(rings: Rings) -> bytes:
    """A polygon in well-known binary."""
    parts = [np.ascontiguousarray(ring, "<f8") for ring in rings]
    return struct.pack("<BII", 1, 3, len(parts)) + b"".join(struct.pack("<I", len(part)) + part.tobytes()
                                                            for part in parts)
