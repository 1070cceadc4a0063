"""The report of an evaluation: one self-contained HTML page.

`page.html` beside this file has the page's style and a script that draws everything from one block of JSON, which this
module writes. Text of any origin stays data in it and is never parsed as HTML.
"""
import base64
import html
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lib.imagery.drawing import PREDICTION_COLOUR, TRUTH_COLOUR
from utils import write_text

TEMPLATE = Path(__file__).with_suffix(".html")
HISTOGRAM_BINS = 20
CURVE_STEPS = 100
CONTOUR_TOLERANCE_PX = 0.35  # invisible on a screen, yet outlines become several times shorter
UNITS_PER_PX = 10            # outlines are whole numbers, which are shorter than decimals
NAMES = {"rmsin": "RMSIN", "lavt": "LAVT", "lavt_one": "LAVT (one stage)", "lgce": "LGCE", "fianet": "FIANet",
         "rrsisd": "RRSIS-D", "refcoco": "RefCOCO", "refcoco+": "RefCOCO+", "refcocog": "RefCOCOg",
         "refclef": "RefCLEF", "grefcoco": "gRefCOCO", "refsegrs": "RefSegRS", "risbench": "RISBench",
         "uavid_ris": "UAVid-RIS", "vdd_ris": "VDD-RIS", "remotesam-270k": "RemoteSAM-270K", "rrsishr": "RRSIS-HR",
         "nwpu_refer": "NWPU-Refer", "ris_lad": "RIS-LAD", "earthreason": "EarthReason", "toy": "the toy set"}

Parts = Sequence[Sequence[Sequence[float]]]  # the parts of a mask, as `lib.imagery.vectors.polygons` returns them


@dataclass(frozen=True)
class GalleryPicture:
    """One sample of the gallery.

    `sample` is its index in the results' samples; `truth` and `prediction` are outlines in the JPEG's pixels, as
    `lib.imagery.vectors.polygons` returns them; `attention` holds small heat maps, (word, PNG), and may be empty.
    """

    sample: int
    jpeg: bytes
    width_px: int
    height_px: int
    truth: Parts
    prediction: Parts
    attention: Sequence[tuple[str, bytes]] = ()


def write_report(path: Path, results: dict[str, Any], gallery: Sequence[GalleryPicture]) -> None:
    """Writes the page of the `results`, the contents of `test.py --results`, to `path`, atomically.

    Missing folders are made. Raises `UserError` if the page cannot be written.
    """
    write_text(path, render(results, gallery))


def render(results: dict[str, Any], gallery: Sequence[GalleryPicture]) -> str:
    """The page as text. It contains the gallery's samples only, so its size does not depend on the split's size."""
    samples = results["samples"]
    counts = np.array([(sample["intersection"], sample["union"]) for sample in samples], np.int64).reshape(-1, 2)
    said = {**results["flags"], **results}   # the results' own entries take precedence over flags
    model, dataset = (NAMES.get(name, name) for name in (str(said.get(key, key)) for key in ("model", "dataset")))
    title = f"{model} on {dataset}, {results['split']}"
    data = {**{key: value for key, value in results.items() if key != "samples"}, "title": title,
            "curve": precision_curve(counts), "histogram": iou_histogram(counts),
            "gallery": [_entry(samples[picture.sample], picture) for picture in gallery]}
    values = {"title": html.escape(title).encode("ascii", "xmlcharrefreplace").decode(),
              "truth": "rgb(%d %d %d)" % TRUTH_COLOUR, "prediction": "rgb(%d %d %d)" % PREDICTION_COLOUR,
              "data": as_json(data)}
    # A single pass, so that inserted values are not searched for placeholders.
    return re.sub(r"\{\{(\w+)\}\}", lambda place: values[place[1]], TEMPLATE.read_text(encoding="utf-8"))


def as_json(data: Any) -> str:
    """ASCII JSON that is safe inside a <script> element: `<` is escaped, NaN and infinity are null."""
    return json.dumps(_finite(data), allow_nan=False, separators=(",", ":"), default=str).replace("<", r"\u003c")


def precision_curve(counts: np.ndarray) -> list[float]:
    """(samples, 2) intersections and unions -> percent of samples with IoU ≥ X, for X = 0, 0.01 … 1."""
    iou = np.sort(counts[:, 0] / np.maximum(counts[:, 1], 1))
    below = np.searchsorted(iou, np.arange(CURVE_STEPS + 1) / CURVE_STEPS, side="left")
    return (100 * (1 - below / max(1, len(iou)))).round(3).tolist()


def iou_histogram(counts: np.ndarray) -> list[int]:
    """(samples, 2) intersections and unions -> samples in each of 20 equal bins of IoU; an IoU of 1 is in the last.

    The bins are computed with integers, so that an IoU of exactly 0.15 is not below 0.15.
    """
    bins = np.minimum(HISTOGRAM_BINS * counts[:, 0] // np.maximum(counts[:, 1], 1), HISTOGRAM_BINS - 1)
    return np.bincount(bins, minlength=HISTOGRAM_BINS).tolist()


def outline_path(parts: Parts) -> str:
    """The data of one SVG path, in tenths of a pixel, to be filled by the even-odd rule; '' without outlines."""
    rings = [simplify(np.reshape(np.asarray(ring, float), (-1, 2)), CONTOUR_TOLERANCE_PX)
             for part in parts for ring in part]
    path = []
    for points in ((UNITS_PER_PX * ring).round().astype(int) for ring in rings if len(ring)):
        steps = np.diff(points, axis=0).tolist()   # steps have fewer digits than places
        path += ["M%d %d" % tuple(points[0]), "l" * bool(steps), " ".join("%d %d" % (x, y) for x, y in steps), "z"]
    return "".join(path)


def simplify(ring: np.ndarray, tolerance: float) -> np.ndarray:
    """A closed ring (points, 2) simplified by Douglas-Peucker: removed points lie within `tolerance` of the result."""
    if len(ring) < 4:
        return ring
    far = int(np.hypot(*(ring - ring[0]).T).argmax())
    closed = np.concatenate([ring, ring[:1]])
    keep, open_spans = {0, far}, [(0, far), (far, len(ring))]
    while open_spans:
        first, last = open_spans.pop()
        if last - first < 2:
            continue
        start, chord = closed[first], closed[last] - closed[first]
        offsets = closed[first + 1:last] - start
        along = np.clip(offsets @ chord / max(float(chord @ chord), 1e-12), 0, 1)
        distance = np.hypot(*(offsets - along[:, None] * chord).T)
        if distance.max() > tolerance:
            middle = first + 1 + int(distance.argmax())
            keep.add(middle)
            open_spans += [(first, middle), (middle, last)]
    return ring[sorted(keep)]


def _entry(sample: dict[str, Any], picture: GalleryPicture) -> dict[str, Any]:
    """One sample of the gallery as the page's script reads it."""
    return {**sample, "index": picture.sample, "iou": sample["intersection"] / max(1, sample["union"]),
            "boundary_iou": sample["boundary_intersection"] / max(1, sample["boundary_union"]),
            "jpeg": _base64(picture.jpeg), "width": picture.width_px, "height": picture.height_px,
            "truth": outline_path(picture.truth), "prediction": outline_path(picture.prediction),
            "attention": [{"word": word, "png": _base64(png)} for word, png in picture.attention]}


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _finite(value: Any) -> Any:
    """The same data with None for NaN and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
