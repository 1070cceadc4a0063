"""An index written in another format that `refer.readers` reads: REFER's files, COCO's JSON, JSON Lines, pictures.

Each writer puts the files of one data set below a new data root and returns what they cannot hold, a sentence each.
"""
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from refer.entries import Entry
from refer.own import DESCRIPTION, OWN_IMAGES, SPLITS, description
from refer.readers.phrases import CONVERTED, CONVERTED_IMAGES, PATTERN
from refer.refer import REFER
from utils import UserError
from utils.image_files import open_image

Watch = Callable[[Iterable[Entry]], Iterable[Entry]]  # passes refs on and may show progress
SENTENCES = "`sent` and `tokens` of sentences are made anew from `raw`"


def write_refer(index: REFER, root: Path, watch: Watch) -> list[str]:
    """Writes refs(SPLITBY).p and instances.json; segmentations stay as they are, pictures become RLEs."""
    folder = _folder(index, root)
    sizes, annotations = {}, {}
    for ref in watch(index.Refs.values()):
        annotation = index.refToAnn[ref["ref_id"]]
        if annotation["id"] in annotations:
            continue
        if "mask_path" in annotation or index.format == "coco":
            annotations[annotation["id"]] = _described(index, ref, corners=index.layout.corner_boxes)
        else:
            annotations[annotation["id"]] = annotation
        if not isinstance(index.Imgs[ref["image_id"]].get("height"), int):
            sizes[ref["image_id"]] = index.getMask(ref)["mask"].shape
    images = [{**image, **dict(zip(("height", "width"), sizes[id_], strict=True))} if id_ in sizes else image
              for id_, image in index.Imgs.items()]
    refs = [{"file_name": index.Imgs[ref["image_id"]]["file_name"],
             **{name: value for name, value in ref.items() if name != "line"}} for ref in index.Refs.values()]
    for ref in refs:
        ref.setdefault("sent_ids", [sentence["sent_id"] for sentence in ref["sentences"]])
    (folder / f"refs({index.splitBy}).p").write_bytes(pickle.dumps(refs, 4))
    _write_json(folder / "instances.json", {"images": images, "annotations": list(annotations.values()),
                                            "categories": _categories(index)})
    return ["annotations that no ref points to are left out"]


def write_coco(index: REFER, root: Path, watch: Watch) -> list[str]:
    """Writes NAME_SPLIT.json, which has an annotation with its sentences for each ref."""
    folder = _folder(index, root)
    for split, refs in _by_split(index, watch):
        if split not in SPLITS:
            raise UserError(f"COCO's JSON is written a file a split, and {split!r} is none of {', '.join(SPLITS)}: "
                            "convert to jsonl, whose lines carry their split")
        entries = [{**_described(index, ref), "iscrowd": 0, "ref_id": ref["ref_id"], "sentences": ref["sentences"],
                    # An annotation is a ref here, so an annotation that two refs point to becomes two.
                    "id": ref["ref_id"], **_no_target(ref)} for ref in refs]
        image_ids = dict.fromkeys(ref["image_id"] for ref in refs)
        sizes = {entry["image_id"]: entry["segmentation"]["size"] for entry in entries}
        images = [{**index.Imgs[id_], "height": sizes[id_][0], "width": sizes[id_][1]} for id_ in image_ids]
        _write_json(folder / f"{index.dataset}_{split}.json", {
            "images": images, "annotations": entries, "categories": _categories(index)})
    return [*_polygons(index), "annotations have their ref's id", "images and annotations without a ref are left out"]


def write_jsonl(index: REFER, root: Path, watch: Watch) -> list[str]:
    """Writes NAME_SPLIT.jsonl, a line for each sentence."""
    folder = _folder(index, root)
    for split, refs in _by_split(index, watch):
        name = split if split in SPLITS else "test" if "test" in split else "train"
        with open(folder / f"{index.dataset}_{name}.jsonl", "a", encoding="utf-8") as file:
            for ref in refs:
                own = {key: value for key, value in _described(index, ref, index.layout.corner_boxes).items()
                       if key not in ("id", "image_id")}
                for sentence in ref["sentences"]:
                    line = {"split": split, "image_id": ref["image_id"], "sent": sentence["raw"],
                            "file_name": index.Imgs[ref["image_id"]]["file_name"], **own,
                            "category_name": index.Cats[ref["category_id"]], "ann_id": ref["ann_id"],
                            "ref_id": ref["ref_id"], "sent_id": sentence["sent_id"], **_no_target(ref)}
                    file.write(json.dumps(line) + "\n")
    return [*_polygons(index), SENTENCES, "categories without a ref are left out",
            "images and annotations without a ref are left out"]


def write_phrases(index: REFER, root: Path, watch: Watch) -> list[str]:
    """Writes output_phrase_SPLIT.txt, a mask for each ref and, as both have one name, a copy of its image for each."""
    odd = [split for split in index.split_counts() if split not in SPLITS and "test" not in split]
    if odd:
        raise UserError(f"phrase files are written a file a split, and {odd[0]!r} is none of {', '.join(SPLITS)}: "
                        "convert to jsonl, whose lines carry their split")
    folder, how = _folder(index, root), index.layout.phrases or CONVERTED
    image_dir = root / index.layout.image_folder if index.layout.phrases else folder / CONVERTED_IMAGES
    image_dir.mkdir(parents=True)
    (folder / how.mask_folder).mkdir()
    numbered = not all(isinstance(ref_id, int) for ref_id in index.Refs)
    empty_sentences = unmarked = number = resized = 0
    for split, refs in _by_split(index, watch):
        with open(folder / PATTERN.format(split=split if split in SPLITS else "test"), "a", encoding="utf-8") as file:
            for ref in refs:
                name, number = str(number if numbered else ref["ref_id"]), number + 1
                file_name = name + (how.suffix or ".png")
                mask = Image.fromarray(np.ascontiguousarray(index.getMask(ref)["mask"]) * np.uint8(255))
                with open_image(index.image_path(ref)) as image:
                    image.convert("RGB").save(image_dir / file_name)
                    if mask.size != image.size:   # a mask picture must have its image's size
                        mask, resized = mask.resize(image.size, Image.Resampling.NEAREST), resized + 1
                mask.save(folder / how.mask_folder / file_name)
                unmarked += bool(ref.get("no_target"))
                for sentence in ref["sentences"]:
                    text = " ".join(sentence["raw"].splitlines()).strip()
                    empty_sentences += not text
                    if text:
                        file.write(f"{name if how.suffix else file_name} {text}\n")
    lost = [*_polygons(index), SENTENCES, "which refs show the same image: each has a copy of its own",
            "all ids but the refs', boxes, areas" if not numbered else "all ids, boxes, areas",
            "categories, unless a rule over phrases finds them"]
    if unmarked:
        lost.append(f"that {unmarked} refs have no target by design: their masks are empty, as a fault would be")
    if resized:
        lost.append(f"{resized} masks had another size than their images, to which they are resized")
    if merged := [split for split in index.split_counts() if split not in SPLITS]:
        lost.append(f"the names of the splits {', '.join(merged)}: their refs are in test")
    if empty_sentences:
        lost.append(f"{empty_sentences} sentences without a word")
    return lost


WRITERS = {"refer": write_refer, "coco": write_coco, "jsonl": write_jsonl, "phrases": write_phrases}


def bring_images(index: REFER, root: Path, how: str) -> None:
    """Puts the images where the data set's row says, by `how`: link, copy or none. Phrase files have their own."""
    target = root / _image_folder(index)
    if how == "none" or target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if how == "link":
        target.symlink_to(os.path.abspath(index.IMAGE_DIR), target_is_directory=True)
    else:
        target.mkdir()
        for name in {image["file_name"] for image in index.Imgs.values()}:
            if os.path.isfile(source := os.path.join(index.IMAGE_DIR, name)):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target / name)


def describe(index: REFER, root: Path, to: str) -> None:
    """Writes the dataset.json of a data set of one's own, converted to the format `to`; known ones need none."""
    if index.is_own:
        images = CONVERTED_IMAGES if to == "phrases" else OWN_IMAGES
        _write_json(root / index.dataset / DESCRIPTION, description(index.dataset, index.layout, to, images))


def _image_folder(index: REFER) -> str:
    """The folder of images below a new data root."""
    return os.path.join(index.dataset, OWN_IMAGES) if index.is_own else index.layout.image_folder


def _folder(index: REFER, root: Path) -> Path:
    """The data set's own folder below a new data root. Raises UserError unless it is free."""
    folder = root / (index.dataset if index.is_own else index.layout.folder or index.dataset)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: give --out a folder without this data set")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _by_split(index: REFER, watch: Watch) -> Iterator[tuple[str, list[Entry]]]:
    """The refs of each split, in the index's order."""
    for split in index.split_counts():
        yield split, list(watch([ref for ref in index.Refs.values() if ref["split"] == split]))


def _described(index: REFER, ref: Entry, corners: bool = False) -> dict[str, Any]:
    """The annotation of a ref's mask: `id`, `image_id`, `category_id`, `segmentation` (an RLE), `bbox`, `area`."""
    found = index.getMask(ref)
    rle = coco_mask.encode(np.asfortranarray(found["mask"]))
    x, y, width, height = coco_mask.toBbox(rle).tolist()
    return {"id": ref["ann_id"], "image_id": ref["image_id"], "category_id": ref["category_id"],
            "segmentation": {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")},
            "bbox": [x, y, x + width, y + height] if corners else [x, y, width, height], "area": found["area"]}


def _polygons(index: REFER) -> list[str]:
    """The loss to report if masks are polygons."""
    found = any(isinstance(part, list) for annotation in index.refToAnn.values()
                if isinstance(parts := annotation.get("segmentation"), list) for part in parts)
    return ["polygons are masks of pixels from here on"] if found else []


def _no_target(ref: Entry) -> dict[str, bool]:
    return {"no_target": True} if ref.get("no_target") else {}


def _categories(index: REFER) -> list[dict[str, Any]]:
    return [{"id": id_, "name": name} for id_, name in index.Cats.items()]


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
