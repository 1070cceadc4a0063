"""Finds every fault of a data set's masks and image files, each file read once.

H, W: height and width in pixels; sizes in messages are W×H, as pictures'.
"""
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from refer.check import AREA_SHARE, BORDER_PX, FAULTS, QUIRKS, RRSISD_SIZE, Finding, well_formed_refs
from refer.entries import WHERE_TO_GET_IT, Entry, Id
from refer.masks import decode_segmentation, is_finite, read_mask_picture
from refer.refer import REFER
from utils import UserError
from utils.image_files import DEEP_MODES, ORIENTATION, open_image


@dataclass(frozen=True)
class _Job:
    """One image with its masks: all that a worker needs to know."""

    name: str  # in messages
    path: str
    image: Entry
    masks: list[tuple[str, Entry, bool]]  # its name in messages, the annotation, whether it is empty by design
    read_file: bool
    notes: tuple[str, ...]  # kinds that are no faults in this data set
    usual_size: tuple[int, int] | None  # (H, W)


def check_masks_and_images(index: REFER, read_images: bool = True, workers: int = 0) -> Iterator[Finding]:
    """Decodes every mask that a ref points to and, unless told otherwise, every image that has refs, each once.

    `workers` processes share the work; with 0 this one does it. A bar goes to stderr if that is a terminal.
    Raises UserError if the folder of images is missing or a worker dies.
    """
    if read_images and not os.path.isdir(index.IMAGE_DIR):
        raise UserError(f"Missing the images of {index.dataset}: there is no folder {index.IMAGE_DIR}. "
                        f"{WHERE_TO_GET_IT}; --no_images checks the annotations alone.")
    jobs = _jobs(index, read_images)
    with ProcessPoolExecutor(workers) if workers else _InThisProcess() as pool:
        try:
            results = pool.map(_check_job, jobs, chunksize=16)
            for found in tqdm(results, "images", len(jobs), disable=None, leave=False, dynamic_ncols=True):
                yield from found
        except BrokenProcessPool as error:
            raise UserError("A worker process died, perhaps for want of memory: try again with fewer workers "
                            "(-j 0 uses none).") from error


class _InThisProcess:
    """Stands in for a pool of processes."""

    def __enter__(self) -> "_InThisProcess":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def map(self, function: Callable[[Any], Any], jobs: Iterable[Any], chunksize: int) -> Iterator[Any]:
        return map(function, jobs)


def _jobs(index: REFER, read_images: bool) -> list[_Job]:
    """One job for each image that a ref, or a ref's annotation, points to."""
    speakers: dict[Id, list[Entry]] = {}
    wanted: dict[Id, list[tuple[str, Entry, bool]]] = {}
    names: dict[Id, str] = {}
    for ref in well_formed_refs(index):
        speakers.setdefault(ref["ann_id"], []).append(ref)
        wanted.setdefault(ref["image_id"], [])
        names.setdefault(ref["image_id"], index.where(ref) if "line" in ref else f"image {ref['image_id']!r}")
    for ann_id, refs in speakers.items():
        if ann_id in index.Anns:
            annotation = index.Anns[ann_id]
            name = (index.where(refs[0]) if "line" in refs[0] else
                    f"ref {', '.join(repr(ref['ref_id']) for ref in refs)}, annotation {ann_id!r}")
            wanted.setdefault(annotation["image_id"], []).append((name, annotation, bool(refs[0].get("no_target"))))
    notes, usual_size = QUIRKS.get(index.dataset, ()), RRSISD_SIZE if index.dataset == "rrsisd" else None
    images = ((index.Imgs[image_id], masks) for image_id, masks in wanted.items() if image_id in index.Imgs)
    return [_Job(names.get(image["id"], f"image {image['id']!r}"), os.path.join(index.IMAGE_DIR, image["file_name"]),
                 image, masks, read_images, notes, usual_size) for image, masks in images]


def _check_job(job: _Job) -> list[Finding]:
    found: list[Finding] = []

    def report(kind: str, message: str) -> None:
        found.append(Finding(kind, kind in FAULTS and kind not in job.notes, message))

    name, height, width = job.name, job.image.get("height"), job.image.get("width")
    sizes: dict[str, tuple[int, int]] = {}  # (H, W) by the name of what has this size
    if all("mask_path" in annotation for _, annotation, _ in job.masks) and job.masks:
        pass  # the masks are pictures, which have sizes of their own
    elif isinstance(height, int) and isinstance(width, int) and min(height, width) >= 1:
        sizes["its entry"] = height, width
    else:
        report("malformed entry",
               f"{name}: its height and width must be numbers of pixels, but are {height!r} and {width!r}")
    if job.read_file:
        try:
            sizes["its file"], turned = _decoded_size(job.path)
            if turned:
                report("turned picture", f"{name}: {job.path} is read as it is stored, but Predictor and viewers turn "
                                         "it (EXIF): save it as its mask was drawn")
        except FileNotFoundError:
            report("missing image", f"{name}: there is no file {job.path}")
        except Exception as error:  # damaged bytes surface as nearly any exception
            report("broken image", f"{name}: {job.path} cannot be decoded ({type(error).__name__}: {error})")
    own_size = sizes.get("its file", sizes.get("its entry"))
    if job.usual_size and own_size and own_size != job.usual_size:
        report("not 800×800", f"{name}, {job.path}: {_as_picture(own_size)}")

    for mask_name, annotation, no_target in job.masks:
        try:
            if "mask_path" in annotation:
                sizes[f"its mask {annotation['mask_path']}"] = _check_mask_picture(mask_name, annotation,
                                                                                           no_target, report)
                continue
            mask_size = _check_mask(mask_name, annotation, height, width, no_target, report)
        except FileNotFoundError:
            report("missing mask", f"{mask_name}: there is no file {annotation['mask_path']}")
            continue
        except BadMask as error:
            report("no mask", f"{mask_name}: {error}")
            continue
        except ValueError as error:
            report("malformed segmentation", f"{mask_name}: {error}")
            continue
        if mask_size and _has_rle(annotation["segmentation"]):
            sizes[mask_name] = mask_size
    if len(set(sizes.values())) > 1:
        report("size mismatch", f"{name}, {job.path}: "
                                + ", ".join(f"{whose} {_as_picture(size)}" for whose, size in sizes.items()))
    return found


def _decoded_size(path: str) -> tuple[tuple[int, int], bool]:
    """(H, W) of an image file, all of which is decoded as the samples are, and whether viewers turn it (EXIF).

    Raises whatever Pillow raises.
    """
    with open_image(path) as opened:
        if opened.mode in DEEP_MODES:
            raise ValueError(f"it has more than 8 bits in a channel, {opened.mode}: save it with 8 bits first")
        image = opened.convert("RGB")
        turned = opened.getexif().get(ORIENTATION, 1) != 1
    return (image.height, image.width), turned


class BadMask(Exception):
    """A picture is not a mask."""


def _check_mask_picture(name: str, annotation: Entry, no_target: bool,
                        report: Callable[[str, str], None]) -> tuple[int, int]:
    """Reports a mask that is empty and should not be, or the reverse. Returns its size (H, W).

    Raises FileNotFoundError or BadMask.
    """
    if not os.path.isfile(annotation["mask_path"]):
        raise FileNotFoundError
    try:
        mask = read_mask_picture(annotation["mask_path"], annotation["object_above"])
    except ValueError as error:
        raise BadMask(error) from error
    if mask.any() == no_target:
        report("mask without target" if no_target else "empty mask", f"{name}: {annotation['mask_path']}")
    return mask.shape


def _check_mask(name: str, annotation: Entry, height: int | None, width: int | None, no_target: bool,
                report: Callable[[str, str], None]) -> tuple[int, int] | None:
    """Reports what is wrong with an annotation's mask, and returns the mask's size (H, W), None without a mask.

    `height` and `width` are the image entry's. Raises ValueError if the segmentation is malformed.
    """
    segmentation = annotation.get("segmentation")
    if segmentation is None:
        report("malformed entry", f"{name}: its segmentation is missing")
        return None
    mask = decode_segmentation(segmentation, height, width)
    pixels, area = int(np.count_nonzero(mask)), annotation.get("area")
    if pixels == 0 and not no_target:
        report("empty mask", name)
    if is_finite(area) and AREA_SHARE * abs(area - pixels) > max(area, pixels):
        report("area", f"{name}: area {area}, but its mask has {pixels} pixels")
    height, width = mask.shape   # of a mask that has polygons, the image entry's
    for part in segmentation if isinstance(segmentation, list) else ():
        if isinstance(part, list) and len(part) >= 6:
            outside = [(x, y) for x, y in zip(part[::2], part[1::2], strict=True)
                       if not (-BORDER_PX <= x <= width + BORDER_PX and -BORDER_PX <= y <= height + BORDER_PX)]
            if outside:
                report("polygon outside its image", f"{name}: {len(outside)} points, the first ({outside[0][0]:g}, "
                                                    f"{outside[0][1]:g}), outside {_as_picture((height, width))}")
                break
    return mask.shape


def _has_rle(segmentation: object) -> bool:
    """Whether a mask has a size of its own; polygons take the image entry's."""
    parts = segmentation if isinstance(segmentation, list) else [segmentation]
    return any(isinstance(part, dict) for part in parts)


def _as_picture(size: tuple[int, int]) -> str:
    """(H, W) as W×H."""
    return f"{size[1]}×{size[0]}"
