"""The toy scenes in the layouts of the data sets, field by field.

All show the same pixels (those of the JPEG that the toy RRSIS-D has) and the same masks. In gRefCOCO's and NWPU-Refer's
layouts each scene has two more sentences: about all objects of a category, and about a category that the scene lacks,
which means no object. In EarthReason's layout it has the latter only.
"""
import io
import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from data.toy.drawing import draw_scene, mask_polygons, mask_rle
from data.toy.scenes import CATEGORIES, RRSISD_CATEGORIES, Scene, make_scene
from refer.layouts import DATASETS


@dataclass(frozen=True)
class Shot:
    """One scene as a picture: its number from 1, its split, its bytes as a JPEG file."""

    number: int
    split: str
    scene: Scene
    jpeg: bytes
    size: int

    def pixels(self) -> Image.Image:
        """What the JPEG shows."""
        return Image.open(io.BytesIO(self.jpeg)).convert("RGB")

    def mask(self, target: int) -> Image.Image:
        """The mask of one of its objects, of 0 and 255."""
        return Image.fromarray(coco_mask.decode(mask_rle(self.scene.things[target], self.size)) * np.uint8(255))


def shots(splits: list[str], size: int, seed: int, contents: str) -> Iterator[Shot]:
    """The scenes of a toy set, one for each entry of `splits`; `contents` is a key of `CONTENTS`."""
    for index, split in enumerate(splits):
        scene = make_scene(seed, index, contents)
        pixel_rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index, 1)))
        file = io.BytesIO()
        draw_scene(scene, size, pixel_rng).save(file, "JPEG", quality=95, subsampling=0)
        yield Shot(index + 1, split, scene, file.getvalue(), size)


def write_refer(root: Path, taken: Iterator[Shot], name: str = "rrsisd") -> None:
    """Writes the images, `refs(unc).p` and `instances.json` below `root`, field by field as in RRSIS-D."""
    pictures = root / f"images/{name}/JPEGImages"
    pictures.mkdir(parents=True)
    refs: list[dict[str, Any]] = []
    image_entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for shot in taken:
        scene, size, image_id, file_name = shot.scene, shot.size, shot.number, f"{shot.number:05d}.jpg"
        (pictures / file_name).write_bytes(shot.jpeg)
        image_entries.append({"id": image_id, "file_name": file_name, "height": size, "width": size})
        for expression in scene.expressions:
            thing, number, sent = scene.things[expression.target], len(refs), expression.raw.lower()
            category_id, rle = RRSISD_CATEGORIES.index(thing.category), mask_rle(thing, size)
            x, y, width, height = (int(value) for value in coco_mask.toBbox(rle))
            corner = [x + width, y + height] if DATASETS[name].corner_boxes else [width, height]
            annotations.append({
                "id": number, "image_id": image_id, "categories_id": category_id, "segmentation": [rle],
                "bbox": [x, y, *corner], "area": int(coco_mask.area(rle))})
            refs.append({
                "ref_id": number, "ann_id": number, "image_id": image_id, "category_id": category_id,
                "file_name": file_name, "split": shot.split, "sent_ids": [number],
                "sentences": [
                    {"raw": expression.raw, "sent": sent, "tokens": sent.split(), "sent_id": number}]})
    instances = {"images": image_entries, "annotations": annotations, "categories": [
        {"id": i, "name": category, "supercategory": name} for i, category in enumerate(RRSISD_CATEGORIES)]}
    (root / name).mkdir()
    (root / name / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=4))
    (root / name / "instances.json").write_text(json.dumps(instances) + "\n", encoding="utf-8")


def write_refsegrs(root: Path, taken: Iterator[Shot]) -> None:
    """Writes TIFFs named by numbers; each ref has its own picture, because an id stands for a picture and its mask."""
    def name(shot: Shot, place: int) -> str:
        return str(2 * shot.number - 1 + place)

    _write_phrases(root / "refsegrs", "images", "masks", ".tif", name, lambda name: name, taken)


def write_risbench(root: Path, taken: Iterator[Shot]) -> None:
    """Writes PNGs; those of the val split are called train_…, too, as in RISBench."""
    def name(shot: Shot, place: int) -> str:
        return f"{'train' if shot.split == 'val' else shot.split}_{shot.number}_{place}"

    _write_phrases(root / "risbench", "img_rgb", "mask", ".png", name, lambda name: f"{name}.png", taken)


def _write_phrases(folder: Path, images: str, masks: str, suffix: str, name_of: Any, said: Any,
                   taken: Iterator[Shot]) -> None:
    for below in (images, masks):
        (folder / below).mkdir(parents=True)
    lines: dict[str, list[str]] = {split: [] for split in ("train", "val", "test")}
    for shot in taken:
        for place, expression in enumerate(shot.scene.expressions):
            name = name_of(shot, place)
            shot.pixels().save(folder / images / f"{name}{suffix}")
            shot.mask(expression.target).save(folder / masks / f"{name}{suffix}")
            lines[shot.split].append(f"{said(name)} {expression.raw}\n")
    for split, text in lines.items():
        (folder / f"output_phrase_{split}.txt").write_text("".join(text), encoding="utf-8")


def write_grefcoco(root: Path, taken: Iterator[Shot]) -> None:
    """Writes COCO's file names and JSON. Test scenes go to testA and testB in turn."""
    pictures = root / "images/mscoco/images/train2014"
    pictures.mkdir(parents=True)
    refs: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    tested = 0
    for shot in taken:
        file_name = f"COCO_train2014_{shot.number:012d}.jpg"
        (pictures / file_name).write_bytes(shot.jpeg)
        images.append({"id": shot.number, "file_name": file_name, "height": shot.size, "width": shot.size})
        own = [_annotation(shot, target, len(annotations) + target) for target in range(len(shot.scene.things))]
        annotations += own
        split = shot.split if shot.split != "test" else ("testA", "testB")[tested % 2]
        tested += shot.split == "test"
        for raw, targets in said_of(shot.scene, shot.number):
            ids = [own[target]["id"] for target in targets] or [-1]
            categories = [own[target]["category_id"] for target in targets] or [-1]
            number, sent = len(refs), raw.lower()
            refs.append({
                "ann_id": ids, "category_id": categories, "file_name": file_name.replace(".jpg", f"_{number}.jpg"),
                "image_id": shot.number, "no_target": not targets, "ref_id": number, "sent_ids": [number],
                "sentences": [{"raw": raw, "sent": sent, "sent_id": number, "tokens": sent.split()}], "split": split})
    (root / "grefcoco").mkdir()
    (root / "grefcoco/grefs(unc).json").write_text(json.dumps(refs), encoding="utf-8")
    (root / "grefcoco/instances.json").write_text(json.dumps({
        "images": images, "annotations": annotations, "categories": [
            {"id": number, "name": name, "supercategory": "rrsisd"} for number, name in enumerate(RRSISD_CATEGORIES)]}),
        encoding="utf-8")


def _annotation(shot: Shot, target: int, number: int) -> dict[str, Any]:
    thing = shot.scene.things[target]
    rle = mask_rle(thing, shot.size)
    return {"id": number, "image_id": shot.number, "category_id": RRSISD_CATEGORIES.index(thing.category), "iscrowd": 0,
            "segmentation": rle, "bbox": [int(side) for side in coco_mask.toBbox(rle)],
            "area": int(coco_mask.area(rle))}


def said_of(scene: Scene, number: int) -> list[tuple[str, list[int]]]:
    """A scene's sentences with their objects: two expressions, a category for all, an absent category for none."""
    category = scene.things[scene.expressions[0].target].category
    present = {thing.category for thing in scene.things}
    absent = [look.words for name, look in CATEGORIES.items() if name not in present]
    everyone = [place for place, thing in enumerate(scene.things) if thing.category == category]
    return [*((expression.raw, [expression.target]) for expression in scene.expressions),
            (f"The {CATEGORIES[category].words}", everyone), (f"The {absent[number % len(absent)]}", [])]


def write_nwpu_refer(root: Path, taken: Iterator[Shot]) -> None:
    """Writes a ref for each object that a sentence means, and for each sentence that means none; masks are polygons."""
    folder = root / "nwpu_refer"
    (folder / "image").mkdir(parents=True)
    refs: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for shot in taken:
        file_name = f"{shot.number}.jpg"
        (folder / "image" / file_name).write_bytes(shot.jpeg)
        images.append({"id": shot.number, "file_name": file_name, "height": shot.size, "width": shot.size})
        own = [{**_annotation(shot, target, len(annotations) + target), "segmentation": mask_polygons(thing, shot.size)}
               for target, thing in enumerate(shot.scene.things)]
        annotations += own
        for raw, targets in said_of(shot.scene, shot.number):
            sent = raw.lower()
            for thing in [own[target] for target in targets] or [{"id": -1, "category_id": -1}]:
                refs.append({
                    "ref_id": len(refs), "ann_id": thing["id"], "image_id": shot.number,
                    "category_id": thing["category_id"], "file_name": file_name, "split": shot.split,
                    "sent_ids": [len(refs)], "sentences": [
                        {"raw": raw, "sent": sent, "tokens": sent.split(), "sent_id": len(refs)}]})
    (folder / "new_refs(unc).p").write_bytes(pickle.dumps(refs, protocol=4))
    (folder / "new_instances.json").write_text(json.dumps({
        "images": images, "annotations": annotations, "categories": [
            {"id": number, "name": name} for number, name in enumerate(RRSISD_CATEGORIES)]}), encoding="utf-8")


def write_ris_lad(root: Path, taken: Iterator[Shot]) -> None:
    """Writes a picture for each scene, a mask for each sentence, and a list of both for each split."""
    folder = root / "ris_lad"
    for below in ("images", "masks", "ann"):
        (folder / below).mkdir(parents=True)
    entries: dict[str, list[dict[str, str]]] = {split: [] for split in ("train", "val", "test")}
    for shot in taken:
        (folder / f"images/{shot.number}.jpg").write_bytes(shot.jpeg)
        for place, expression in enumerate(shot.scene.expressions):
            mask = f"{shot.number}_{place}.png"
            shot.mask(expression.target).save(folder / "masks" / mask)
            entries[shot.split].append({"image": f"{shot.number}.jpg", "mask": mask, "expression": expression.raw})
    for split, of_split in entries.items():
        (folder / f"ann/{split}.json").write_text(json.dumps(of_split), encoding="utf-8")


def write_earthreason(root: Path, taken: Iterator[Shot]) -> None:
    """Writes a picture, a mask and a file of questions for each sentence."""
    for shot in taken:
        folder = root / "earthreason" / shot.split
        for below in ("images", "labels", "QAs"):
            (folder / below).mkdir(parents=True, exist_ok=True)
        *single, _, (nothing, _) = said_of(shot.scene, shot.number)
        for place, (raw, targets) in enumerate([*single, (nothing, [])]):
            name = f"{shot.number}_{place}"
            (folder / f"images/{name}.jpg").write_bytes(shot.jpeg)
            mask = shot.mask(*targets) if targets else Image.new("L", (shot.size, shot.size))
            mask.save(folder / f"labels/{name}.png")
            answer = ["It is marked in the picture."] if targets else []
            (folder / f"QAs/{name}.json").write_text(json.dumps({"questions": [raw], "answer": answer}),
                                                     encoding="utf-8")


LAYOUTS: dict[str, Callable[[Path, Iterator[Shot]], None]] = {
    "refsegrs": write_refsegrs, "risbench": write_risbench, "grefcoco": write_grefcoco,
    "rrsishr": partial(write_refer, name="rrsishr"), "nwpu_refer": write_nwpu_refer, "ris_lad": write_ris_lad,
    "earthreason": write_earthreason}
SENTENCES = {"grefcoco": 4, "nwpu_refer": 4, "earthreason": 3}   # about a scene; 2 in every other layout
PICTURE_FOLDERS = {"refsegrs": ("refsegrs/images", "refsegrs/masks"), "risbench": ("risbench/img_rgb", "risbench/mask"),
                   "grefcoco": ("images/mscoco/images/train2014",), "rrsishr": ("images/rrsishr/JPEGImages",),
                   "nwpu_refer": ("nwpu_refer/image",), "ris_lad": ("ris_lad/images", "ris_lad/masks"),
                   "earthreason": tuple(f"earthreason/{split}/{below}" for split in ("train", "val", "test")
                                        for below in ("images", "labels", "QAs"))}
TEXT_FILES = {
    **{name: {f"{name}/output_phrase_{split}.txt" for split in ("train", "val", "test")}
       for name in ("refsegrs", "risbench")}, "grefcoco": {"grefcoco/grefs(unc).json", "grefcoco/instances.json"},
    "rrsishr": {"rrsishr/refs(unc).p", "rrsishr/instances.json"},
    "nwpu_refer": {"nwpu_refer/new_refs(unc).p", "nwpu_refer/new_instances.json"},
    "ris_lad": {f"ris_lad/ann/{split}.json" for split in ("train", "val", "test")}}
