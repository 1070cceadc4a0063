"""The gallery of a report: the choice of samples, their images in small, and the outlines of both masks."""
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from lib.evaluation.predictions import Prediction
from lib.imagery.vectors import polygons
from lib.report.page import GalleryPicture

LONGEST_SIDE_PX, JPEG_QUALITY = 256, 75   # about 12 kB for an aerial photograph: 200 of them stay under 5 MB


def choose(samples: Sequence[dict[str, Any]], most: int) -> list[int]:
    """At most `most` indices into `samples`, in ascending order, evenly spread over the ranking by IoU."""
    iou = [sample["intersection"] / max(1, sample["union"]) for sample in samples]
    ranked = np.argsort(iou, kind="stable")
    return sorted(ranked[np.linspace(0, len(ranked) - 1, min(most, len(ranked))).astype(int)].tolist())


def outline(mask: np.ndarray, size: tuple[int, int]) -> list[list[list[float]]]:
    """`polygons` of a mask (H, W) bool in the pixels of a picture of `size` (width, height)."""
    scaled = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)).astype(bool)
    return polygons(scaled)


def make_gallery(samples: Sequence[dict[str, Any]], predictions: Sequence[Prediction],
                 load: Callable[[int], tuple[Image.Image, np.ndarray]], most: int,
                 attention: Callable[[int], list[tuple[str, bytes]]] | None = None) -> list[GalleryPicture]:
    """The pictures of at most `most` samples.

    `load` and `attention` receive an index into `samples`: `load` returns the image and the true mask (H, W),
    `attention` the result of `lib.report.attention_maps.heat_strip`.
    """
    pictures = []
    for place in choose(samples, most):
        image, truth = load(place)
        image.thumbnail((LONGEST_SIDE_PX, LONGEST_SIDE_PX))
        image.save(jpeg := io.BytesIO(), "JPEG", quality=JPEG_QUALITY)
        pictures.append(GalleryPicture(
            place, jpeg.getvalue(), image.width, image.height, outline(truth.astype(bool), image.size),
            outline(predictions[place].mask(), image.size), attention(place) if attention else ()))
    return pictures
