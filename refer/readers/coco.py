"""COCO's JSON, NAME_SPLIT.json for each split: an annotation is a ref, with `sentences` beside COCO's fields.

tools/convert_dataset.py writes it; any program that knows COCO reads masks, boxes and categories from it.
"""
import os

from refer.entries import Content, Entry, OnFault, read_instances, require
from refer.readers.place import Place
from utils import UserError

REF_FIELDS = ("ref_id", "sentences", "no_target")  # fields of an annotation beside COCO's


def find(place: Place) -> list[str]:
    """The files that exist."""
    return list(place.files_of_splits(place.dataset + "_{split}.json").values())


def read(place: Place, on_fault: OnFault) -> Content:
    """Reads all splits. Raises UserError if no file is there or one is damaged."""
    pattern = place.dataset + "_{split}.json"
    paths = place.files_of_splits(pattern)
    if not paths:
        require(os.path.isfile, os.path.join(place.folder, pattern.format(split="train")),
                f"the refs of {place.dataset}")
    refs: list[Entry] = []
    lists: dict[str, list[Entry]] = {"images": [], "annotations": [], "categories": []}
    for split, path in paths.items():
        for name, entries in read_instances(path).items():
            lists[name] += entries if name == "annotations" else _new(entries, lists[name])
            if name == "annotations":
                refs += _refs_of(entries, split, path, on_fault)
    where = os.path.join(place.folder, pattern.format(split="*"))
    return Content(refs, lists["images"], lists["annotations"], lists["categories"], place.image_dir,
                   files=tuple(paths.values()), refs_path=where, instances_path=where)


def _new(entries: list[Entry], known: list[Entry]) -> list[Entry]:
    """The entries that no earlier split has: every file repeats the images and categories that it needs."""
    seen = {str(sorted(entry.items())) for entry in known if isinstance(entry, dict)}
    return [entry for entry in entries if not isinstance(entry, dict) or str(sorted(entry.items())) not in seen]


def _refs_of(annotations: list[Entry], split: str, path: str, on_fault: OnFault) -> list[Entry]:
    """A file's refs; annotations of COCO's fields alone are reported. Raises UserError if all are."""
    annotations = [entry for entry in annotations if isinstance(entry, dict)]
    needed = ("has none of ref_id and sentences, which a ref has beside COCO's fields (sentences is a list of objects "
              "with sent_id, raw and tokens). tools/import_dataset.py makes a data set of COCO's JSON with captions")
    plain = [entry for entry in annotations if "ref_id" not in entry and "sentences" not in entry]
    if annotations and len(plain) == len(annotations):
        raise UserError(f"{path}: no annotation is a ref; the first one {needed}.")
    for entry in plain:
        on_fault("malformed entry", f"{path}: annotation {str(entry.get('id'))[:40]} {needed}.")
    return [_ref_of(entry, split) for entry in annotations if "ref_id" in entry or "sentences" in entry]


def _ref_of(annotation: Entry, split: str) -> Entry:
    own = {name: annotation[name] for name in REF_FIELDS if name in annotation}
    return {**own, "ann_id": annotation.get("id"), "image_id": annotation.get("image_id"),
            "category_id": annotation.get("category_id"), "split": split}
