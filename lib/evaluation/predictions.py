"""Predicted masks, kept in memory and written as COCO's RLE in one JSON file, or as a PNG for each sample.

The JSON file is a list of {`ref_id`, `sent_id`, `image_id`, `sentence`, `score`, `segmentation`}: a COCO results file
with the two ids that referring expressions need. `segmentation` is a compressed RLE {"size": [H, W], "counts": str},
`score` is the mean probability inside the mask. A PNG is REF_SENT.png, 255 where the object is. Characters of an id
other than letters, digits, `.` and `-` are escaped as in URLs, so that an id never leads to another folder.
"""
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from lib.evaluation.metrics import COUNTS, count_pixels, predict
from schema import Id, check
from utils import UserError, read_json, write_json


@dataclass
class PredictionEntry:
    """The fields that are read from an entry of a file of predictions, which any program may have written."""

    ref_id: Id
    segmentation: Any   # refer.masks.decode_segmentation checks it
    sent_id: Id = ""    # '' for all sentences of the ref


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """(H, W) bool -> compressed RLE {"size": [H, W], "counts": str}, fit for JSON."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


@dataclass(frozen=True)
class Prediction:
    """A predicted mask as RLE, and the mean probability inside it (0 for an empty mask)."""

    segmentation: dict[str, Any]
    score: float

    def mask(self) -> np.ndarray:
        """The mask, (H, W) bool."""
        return coco_mask.decode(self.segmentation).astype(bool)


class Recorder:
    """Observes `evaluate` and keeps pixel counts at the masks' original size, and predictions.

    `original_mask` returns a sample's mask (H, W) in its original size; with it the logits are also resized to that
    size (bilinear) and counted there; `rows` returns these counts. With `keep`, `predictions` maps each sample's index
    to its mask, in the original size if `original_mask` is given, else in the network's.
    """

    def __init__(self, original_mask: Callable[[int], np.ndarray] | None, keep: bool):
        self.original_mask, self.keep = original_mask, keep
        self.counted = [torch.empty(0, 1 + len(COUNTS), dtype=torch.int64)]
        self.predictions: dict[int, Prediction] = {}

    def __call__(self, indices: list[int], logits: Tensor) -> None:
        logits = logits.float()
        for index, sample in zip(indices, logits.split(1), strict=True):
            if self.original_mask:
                truth = torch.from_numpy(self.original_mask(index)).to(logits.device)
                sample = F.interpolate(sample, truth.shape, mode="bilinear", align_corners=False)
                counts = count_pixels(predict(sample), truth[None]).cpu()
                self.counted.append(torch.cat([torch.tensor([[index]]), counts], dim=1))
            if self.keep:
                mask = predict(sample)[0]
                score = sample.softmax(1)[0, 1][mask].mean().item() if mask.any() else 0.0
                self.predictions[index] = Prediction(encode_mask(mask.cpu().numpy()), score)

    def rows(self) -> Tensor:
        """(samples, 6) int64 on the CPU, as `evaluate` returns them; no rows without `original_mask`."""
        return torch.cat(self.counted)


def png_name(ref_id: Any, sent_id: Any) -> str:
    """The file name of a sample's mask. `ids_of_png` is the inverse."""
    return "_".join(quote(str(part), safe="").replace("_", "%5F") for part in (ref_id, sent_id)) + ".png"


def ids_of_png(path: Path) -> tuple[str, str]:
    """The ref_id and sent_id of a file name, as text; the latter is '' if the name has no `_`."""
    ref_id, _, sent_id = path.stem.partition("_")
    return unquote(ref_id), unquote(sent_id)


def read_entries(path: Path) -> dict[tuple[str, str], Any]:
    """{(ref_id, sent_id) as text: segmentation} of a JSON file of predictions. Raises `UserError` for other files."""
    entries = read_json(path)
    check(list[PredictionEntry], entries, f"{path} (a JSON list of objects with ref_id, sent_id and segmentation)")
    found: dict[tuple[str, str], Any] = {}
    for entry in entries:
        name = str(entry["ref_id"]), str(entry.get("sent_id", ""))
        if name in found:
            raise UserError(f"{path}: ref_id {name[0]}, sent_id {name[1]} occurs twice")
        found[name] = entry["segmentation"]
    return found


def write_predictions(folder: Path, samples: list[dict[str, Any]], predictions: list[Prediction], pngs: bool) -> None:
    """Writes `folder`/predictions.json, and a PNG for each sample if `pngs`; the lists have the same order.

    Raises `UserError` if the files cannot be written.
    """
    write_json(folder / "predictions.json", [
        {**{name: sample[name] for name in ("ref_id", "sent_id", "image_id", "sentence")},
         "score": round(prediction.score, 4), "segmentation": prediction.segmentation}
        for sample, prediction in zip(samples, predictions, strict=True)])
    try:
        for sample, prediction in zip(samples, predictions, strict=True) if pngs else ():
            picture = Image.fromarray(prediction.mask().astype(np.uint8) * 255)
            picture.save(folder / png_name(sample["ref_id"], sample["sent_id"]))
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error}") from error
