"""RIS-LAD's format: ann/SPLIT.json is a list of `image`, `mask` and `expression`; masks are pictures.

A ref is a mask within a split, and the entries that name it are its sentences. A name may begin with the folder in
which the picture lies.
"""
import os
from typing import Any

from refer.categories import OTHER
from refer.entries import WHERE_TO_GET_IT, Content, Entry, Fields, OnFault, make_sentence, read_json, require
from refer.own import stays_inside
from refer.readers.place import Place
from utils import UserError

PATTERN = os.path.join("ann", "{split}.json")
MASKS = "masks"
FIELDS = Fields(image=str, mask=str, expression=str)


def find(place: Place) -> list[str]:
    """The files that exist."""
    return list(place.files_of_splits(PATTERN).values())


def read(place: Place, on_fault: OnFault) -> Content:
    """Reads the entries; pictures are named, but not opened. Raises UserError if no file is there or one is damaged."""
    paths = place.files_of_splits(PATTERN)
    if not paths:
        require(os.path.isfile, os.path.join(place.folder, PATTERN.format(split="train")),
                f"the expressions of {place.dataset}")
    mask_dir = os.path.join(place.folder, MASKS)
    refs: dict[tuple[str, str, str], Entry] = {}
    images: dict[str, Entry] = {}
    annotations: dict[tuple[str, str], Entry] = {}
    categories: dict[str, int] = {}
    sentences = 0
    for split, path in paths.items():
        entries = read_json(path)
        if not isinstance(entries, list):
            raise UserError(f"{path} must hold a list of objects with {', '.join(FIELDS)}. {WHERE_TO_GET_IT}.")
        for position, entry in enumerate(entries):
            if problem := _problem(entry):
                on_fault("malformed entry", f"{path}, entry {position} (from 0): {problem}. {WHERE_TO_GET_IT}.")
                continue
            image_name, mask_name = _below(entry["image"], os.path.basename(place.image_dir)), _below(entry["mask"],
                                                                                                     MASKS)
            category = entry["category"] if isinstance(entry.get("category"), str) else OTHER
            image = images.setdefault(image_name, {"id": len(images), "file_name": image_name})
            annotation = annotations.setdefault((image_name, mask_name), {
                "id": len(annotations), "image_id": image["id"], "object_above": 0,
                "category_id": categories.setdefault(category, len(categories)),
                "mask_path": os.path.join(mask_dir, mask_name)})
            ref = refs.setdefault((split, image_name, mask_name), {
                "ref_id": len(refs), "ann_id": annotation["id"], "image_id": image["id"], "file_name": image_name,
                "category_id": annotation["category_id"], "split": split, "sentences": []})
            ref["sentences"].append(make_sentence(sentences, entry["expression"]))
            sentences += 1
    return Content(list(refs.values()), list(images.values()), list(annotations.values()),
                   [{"id": id_, "name": name} for name, id_ in categories.items()], place.image_dir,
                   tuple(paths.values()), os.path.join(place.folder, PATTERN.format(split="*")), mask_dir)


def _problem(entry: Any) -> str:
    """What is wrong with an entry; '' if nothing is."""
    if not isinstance(entry, dict) or (wrong := FIELDS.wrong(entry)):
        return f"it must be an object with the texts {', '.join(FIELDS)}" + (
            f", but '{wrong[0]}' is {entry.get(wrong[0])!r}" if isinstance(entry, dict) else "")
    outside = [name for name in ("image", "mask") if not stays_inside(entry[name])]
    return f"'{outside[0]}' must be a path inside the folder, but is {entry[outside[0]]!r}" if outside else ""


def _below(name: str, folder: str) -> str:
    """A file's name without the folder, if it begins with that."""
    return name.replace("\\", "/").removeprefix("./").removeprefix(f"{folder}/")
