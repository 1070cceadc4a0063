"""A layer of a map, GeoJSON or GeoPackage, whose features have a sentence, over rasters that are cut into tiles."""
import io
import json
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from lib.imagery.gdal import need_rasterio
from lib.imagery.vectors import need_pyogrio
from refer.importers.rasters import Raster
from refer.importers.rows import Findings, Options, Row, Shape, sentences_of, split_name
from refer.importers.table import find_columns
from utils import UserError, read_json

LONGITUDE_LATITUDE = "OGC:CRS84"   # of a GeoJSON that names no other system
_AREAS = ("Polygon", "MultiPolygon")
_FORMATS = (b"SQLite format 3\0", b"\0\0\x27\x0a")   # the first bytes of a GeoPackage, of a shapefile
RASTER = "raster"   # as --group: the tiles of one raster stay together

Feature = dict[str, Any]
Tile = tuple[int, int, int]   # the raster's number, top and left in pixels


def read(sources: list[str], options: Options, found: Findings) -> Iterator[Row]:
    """A row for each feature and tile. The tiles that have one are written to the folder `options.work`.

    Raises UserError for a file that cannot be read, or if no feature lies on a raster.
    """
    if not options.rasters:
        raise UserError("a layer needs the picture that it was drawn on: give --raster FILE")
    rasters = [Raster(path, options.bands) for path in options.rasters]
    tiles: dict[Tile, list[tuple[str, dict[str, Any], dict[str, Any]]]] = defaultdict(list)
    features = 0
    for source in sources:
        crs, entries = read_features(source, options.layer)
        names = list(dict.fromkeys(name for entry in entries for name in entry["properties"] or {}))
        group = options.group if options.group != RASTER else ""
        columns = find_columns(names, Options(options.work, options.columns, group=group), source, ("sentence",))
        for number, feature in enumerate(entries, start=1):
            where, facts = f"{source}, feature {number}", _facts(feature, columns)
            if not facts["sentences"]:
                found.note("features without a sentence, left out", where)
                continue
            try:
                features += 1
                for tile, rle in _parts(feature, crs, rasters, options, found, where):
                    tiles[tile].append((where, facts, rle))
            except ValueError as error:
                found.refuse(where, str(error))
    if features and not tiles and not found.bad:
        raise UserError(f"none of the {features} features of {', '.join(sources)} lies on "
                        f"{', '.join(options.rasters)}: see whether layer and raster have the right coordinate systems")
    for (number, top, left), parts in tiles.items():
        path = _write_tile(rasters[number], number, top, left, options)
        for where, facts, rle in parts:
            try:
                yield Row(f"{where}, tile {os.path.basename(path)}", path, facts["sentences"], Shape(json.dumps(rle)),
                          split_name(facts["split"]), facts["category"],
                          group=rasters[number].path if options.group == RASTER else facts["group"])
            except ValueError as error:
                found.refuse(where, str(error))


def _facts(feature: Feature, columns: dict[str, str]) -> dict[str, Any]:
    """What a feature's properties say: `sentences`, and `split`, `category` and `group` as texts."""
    properties = feature["properties"] or {}
    values = {what: properties.get(columns.get(what, "")) for what in ("split", "category", "group")}
    return {"sentences": sentences_of(properties.get(columns["sentence"])),
            **{what: "" if value is None else str(value) for what, value in values.items()}}


def read_features(path: str, layer: str = "") -> tuple[str, list[Feature]]:
    """The coordinate system of a layer, and its features in GeoJSON's form. Raises UserError."""
    content = read_json(path) if path.lower().endswith(("json",)) else _as_geojson(path, layer)
    features = content.get("features") if isinstance(content, dict) else None
    if not isinstance(features, list):
        raise UserError(f"{path} is no GeoJSON: it must have a list of features")
    for number, feature in enumerate(features, start=1):
        if not isinstance(feature, dict) or not all(
                isinstance(feature.get(name), dict | None) for name in ("geometry", "properties")):
            raise UserError(f"{path}, feature {number} must have a geometry and properties")
    crs = content.get("crs")
    try:
        named = crs["properties"]["name"] if crs else LONGITUDE_LATITUDE
    except (TypeError, KeyError) as error:
        raise UserError(f"{path}: its crs must have properties with a name, but is {str(crs)[:80]}") from error
    return str(named), [{"geometry": feature.get("geometry"), "properties": feature.get("properties")}
                        for feature in features]


def _as_geojson(path: str, layer: str) -> Any:
    """A layer of a GeoPackage or shapefile as GeoJSON in its own coordinate system. Raises UserError.

    Other formats are refused by their first bytes, whatever the suffix: some of them name other files or addresses,
    which the library would open.
    """
    pyogrio = need_pyogrio(path)
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if not head.startswith(_FORMATS):
        raise UserError(f"{path} is neither a GeoPackage nor a shapefile by its content, nor GeoJSON by its name")
    try:
        layers = [name for name, kind in pyogrio.list_layers(path) if kind]   # a table without geometry has no kind
        if not layer and len(layers) != 1:
            raise UserError(f"{path} has the layers {', '.join(layers)}: choose one with --layer")
        meta, _, geometry, values = pyogrio.raw.read(path, layer=layer or layers[0], force_2d=True)
        texts = [np.array(["" if value is None else str(value) for value in column], object) for column in values]
        written = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")   # of coordinates that are no numbers, which the row is refused for
            pyogrio.raw.write(written, geometry, texts, meta["fields"], driver="GeoJSON", crs=meta["crs"],
                              geometry_type="Unknown", layer="layer", COORDINATE_PRECISION="15")
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, ValueError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read: {error}") from error
    content = json.loads(written.getvalue())
    return {**content, "crs": {"properties": {"name": meta["crs"] or LONGITUDE_LATITUDE}}}


def _parts(feature: Feature, crs: str, rasters: list[Raster], options: Options, found: Findings,
           where: str) -> list[tuple[Tile, dict[str, Any]]]:
    """The tiles that show enough of a feature, each with its mask there. Raises ValueError, saying what is wrong."""
    rasterio = need_rasterio("a layer over a raster")
    kind = (feature["geometry"] or {}).get("type")
    if kind not in _AREAS:
        raise ValueError(f"it is a {kind}, which covers no area" if kind else "it has no geometry")
    parts: list[tuple[Tile, dict[str, Any]]] = []
    is_on_a_raster = False
    for number, raster in enumerate(rasters):
        try:
            geometry = rasterio.warp.transform_geom(crs, raster.crs, feature["geometry"])
            masks = _masks_of_tiles(geometry, raster, options.tile_px)
        except Exception as error:   # GDAL and its bindings raise many kinds for damaged geometries
            raise ValueError(f"its geometry cannot be laid over {raster.path} ({error})") from error
        pixels = sum(int(coco_mask.area(rle)) for rle in masks.values())
        is_on_a_raster = is_on_a_raster or bool(masks)
        if masks and not pixels:
            raise ValueError(f"its mask is empty: it is smaller than a pixel of {raster.path}")
        for (top, left), rle in masks.items():
            if coco_mask.area(rle) >= max(1, options.min_visible * pixels):
                parts.append(((number, top, left), {"size": [int(side) for side in rle["size"]],
                                                    "counts": rle["counts"].decode("ascii")}))
    if not is_on_a_raster:
        found.note("features beside the rasters, left out", where)
    elif not parts:
        found.note(f"features of which no tile shows {options.min_visible:.0%}, left out (a larger --tile cuts fewer)",
                   where)
    return parts


def _masks_of_tiles(geometry: dict[str, Any], raster: Raster, tile_px: int) -> dict[tuple[int, int], dict[str, Any]]:
    """{(top, left): RLE} for the tiles that a geometry's box touches; the last ones have their whole size, too.

    Pixels beyond the raster's border are 0.
    """
    rasterio = need_rasterio("a layer over a raster")
    west, south, east, north = rasterio.features.bounds(geometry)
    rows, columns = rasterio.transform.rowcol(raster.transform, [west, west, east, east], [south, north, south, north],
                                              op=float)
    masks = {}
    for top in _starts(min(rows), max(rows), raster.height, tile_px):
        for left in _starts(min(columns), max(columns), raster.width, tile_px):
            height, width = min(tile_px, raster.height - top), min(tile_px, raster.width - left)
            window = rasterio.windows.Window(left, top, width, height)
            inside = rasterio.features.rasterize(
                [(geometry, 1)], (height, width), dtype="uint8",
                transform=rasterio.windows.transform(window, raster.transform))
            size = _tile_size(raster, tile_px)
            whole = np.pad(inside, ((0, size[1] - height), (0, size[0] - width)))
            masks[top, left] = coco_mask.encode(np.asfortranarray(whole))
    return masks


def _starts(low: float, high: float, side: int, tile_px: int) -> range:
    """Where the tiles begin that the range from `low` to `high` touches, within a side of a raster."""
    if high <= 0 or low >= side:
        return range(0)
    return range(int(max(low, 0)) // tile_px * tile_px, min(int(np.ceil(high)), side), tile_px)


def _tile_size(raster: Raster, tile_px: int) -> tuple[int, int]:
    """(width, height) of a raster's tiles: one that is smaller than a tile is not enlarged."""
    return min(tile_px, raster.width), min(tile_px, raster.height)


def _write_tile(raster: Raster, number: int, top: int, left: int, options: Options) -> str:
    """Writes a tile as PNG and returns its path."""
    folder = options.work / (raster.stem if len(options.rasters) == 1 else f"{number + 1}_{raster.stem}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{raster.stem}_{top:06d}_{left:06d}.png"
    Image.fromarray(raster.read(left, top, *_tile_size(raster, options.tile_px))).save(path)
    return str(path)
