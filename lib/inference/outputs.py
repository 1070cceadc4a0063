"""The files of one image: masks, probabilities, overlays and vectors, written while its bands arrive.

Shapes: n sentences, H, W the image's height and width in pixels.
"""
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from lib.evaluation.predictions import encode_mask
from lib.imagery.drawing import overlay
from lib.imagery.gdal import need_rasterio, one_line
from lib.imagery.layers import GeoLayer, PlainLayer, save_picture
from lib.imagery.objects import Objects
from lib.imagery.scenes import Scene
from lib.imagery.sources import Plain
from lib.imagery.vectors import FORMATS, features, need_pyogrio, polygons, write_features
from utils import UserError, log

PREVIEW_PX = 2048   # longest side of a scene's overlay


@dataclass(frozen=True)
class Wanted:
    """What is written. `vectors` maps a suffix of `FORMATS` to a file, or to None for one beside the masks."""

    folder: Path
    threshold: float = 0.5
    entries: bool = False          # whether `write_image` returns entries with RLE and polygons, which hold whole masks
    probabilities: bool = False
    vectors: dict[str, Path | None] = field(default_factory=dict)
    min_area: float = 0.0
    simplify_px: float = 0.0

    def check(self, source: Plain | Scene, name: str) -> None:
        """Raises `UserError`, before anything is computed, if the source has no vectors of a format."""
        if self.vectors:
            need_rasterio("--gpkg and --geojson")
            need_pyogrio("--gpkg and --geojson")
        if ".geojson" in self.vectors and (not isinstance(source, Scene) or source.crs is None):
            raise UserError(f"{name}: --geojson needs longitude and latitude, and the image has no coordinate "
                            "reference system; give --gpkg, whose coordinates are the image's own")


def write_image(wanted: Wanted, path: Path, source: Plain | Scene, names: dict[str, str],
                bands: Iterable[tuple[int, np.ndarray]]) -> list[dict[str, Any]]:
    """Writes the files of an image, each in full or not at all, and returns an entry for each sentence if wanted.

    `names` gives each sentence's file name. `bands` yields first rows and probabilities (n, rows, W) from top to
    bottom. Raises `UserError` if something cannot be read or written.
    """
    scene = source if isinstance(source, Scene) else None
    suffix = ".png" if scene is None else ".tif"

    def layer(name: str, kind: str) -> GeoLayer | PlainLayer:
        file = wanted.folder / f"{name}{suffix}"
        return PlainLayer(file, kind) if scene is None else GeoLayer(file, scene, kind)

    objects = [Objects() for _ in names] if wanted.vectors else []
    totals, areas = np.zeros(len(names)), np.zeros(len(names), np.int64)
    with ExitStack() as stack:
        masks = [layer(f"{name}-mask", "uint8") for name in names.values()]
        maps = [layer(f"{name}-probability", "float16") for name in names.values() if wanted.probabilities]
        for one in (*masks, *maps):
            stack.enter_context(one)
        for _, found in bands:
            inside = found > wanted.threshold
            areas += inside.sum((1, 2))
            totals += np.where(inside, found, 0).sum((1, 2), dtype=np.float64)
            for place, mask in enumerate(masks):
                mask.write(inside[place].astype(np.uint8) * 255)
            for place, probability in enumerate(maps):
                probability.write(found[place])
            for place, collected in enumerate(objects):
                collected.add(inside[place], found[place])
        means = totals / areas.clip(1)
        files = write_vectors(wanted, path, scene, list(names), masks, objects)
        entries = []
        preview = source.preview(PREVIEW_PX) if isinstance(source, Scene) else source.picture
        for place, (sentence, name) in enumerate(names.items()):
            overlay_file = wanted.folder / f"{name}-overlay.png"
            shown = masks[place].read(PREVIEW_PX) > 0
            save_picture(Image.fromarray(overlay(np.asarray(preview), shown)), overlay_file)
            log(f"{path}: '{sentence}': {areas[place]} of {source.size[0] * source.size[1]} pixels, mean probability "
                f"{means[place]:.2f} -> {overlay_file}")
            if wanted.entries:
                entries.append({
                    "image": str(path), "sentence": sentence, "mask": str(masks[place].path),
                    "overlay": str(overlay_file), **({"probability": str(maps[place].path)} if maps else {}), **files,
                    **describe(masks[place].read() > 0, means[place])})
    return entries


def write_vectors(wanted: Wanted, path: Path, scene: Scene | None, sentences: Sequence[str],
                  masks: Sequence[GeoLayer | PlainLayer], objects: Sequence[Objects]) -> dict[str, str]:
    """Writes one vector file in each format, with the objects of all sentences: {'gpkg': FILE, …}"""
    if not wanted.vectors:
        return {}
    transform = need_rasterio("--gpkg").Affine.identity() if scene is None else scene.transform
    crs = None if scene is None else scene.crs
    with one_line(str(path), "has a coordinate reference system without areas"):
        made = [one for sentence, mask, collected in zip(sentences, masks, objects, strict=True) for one in features(
            mask.finish(), collected.found(), sentence, transform, crs, wanted.min_area, wanted.simplify_px)]
    files = {}
    for suffix, file in wanted.vectors.items():
        file = file or wanted.folder / f"{path.stem[:100]}-objects{suffix}"
        write_features(file, FORMATS[suffix], made, transform, crs)
        log(f"{path}: {len(made)} objects -> {file}")
        files[suffix[1:]] = str(file)
    return files


def describe(mask: np.ndarray, mean_probability: float) -> dict[str, Any]:
    """A mask's entry in --json, in pixels; `box` is [x, y, width, height], `polygons` as in lib.imagery.vectors."""
    rle = encode_mask(mask)
    return {"size": rle["size"], "area": int(mask.sum()), "box": coco_mask.toBbox(rle).tolist(),
            "mean_probability": round(float(mean_probability), 4), "segmentation": rle, "polygons": polygons(mask)}
