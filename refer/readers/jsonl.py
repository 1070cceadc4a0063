"""JSON Lines, the form that several groups convert data sets to: NAME_SPLIT.jsonl, a line for each sentence and mask.

A line is {"split", "image_id", "sent", "file_name", "segmentation"} and, where known, `category_id`, `category_name`,
`ann_id`, `bbox`, `area`. What tools/convert_dataset.py writes also has `ref_id` and `sent_id`: lines of one ref are its
sentences. Without these, the lines of one `ann_id` make a ref, and every other line makes one.
"""
import itertools
import json
import os
from types import UnionType
from typing import Any

from refer.categories import OTHER, category_of_phrase, names_of
from refer.entries import WHERE_TO_GET_IT, Content, Entry, Id, OnFault, make_sentence, read_lines, require
from refer.readers.place import Place

FIELDS: dict[str, type | UnionType] = {"image_id": Id, "sent": str, "file_name": str}


def find(place: Place) -> list[str]:
    """The files that exist."""
    return list(place.files_of_splits(place.dataset + "_{split}.jsonl").values())


def read(place: Place, on_fault: OnFault) -> Content:
    """Reads all lines. Raises UserError if no file is there."""
    pattern = place.dataset + "_{split}.jsonl"
    line_files = place.files_of_splits(pattern)
    if not line_files:
        require(os.path.isfile, os.path.join(place.folder, pattern.format(split="train")),
                f"the refs of {place.dataset}")
    found = _Found(place.layout.categories, place.layout.category_names)
    for split, path in line_files.items():
        for number, line in read_lines(path, on_fault):
            entry = _parsed(path, number, line, on_fault)
            if entry and (problem := found.add(entry, split, number)):
                on_fault("repeated id", f"{path}, line {number} {problem}, but an id must stand for one, in all files "
                                        f"together. {WHERE_TO_GET_IT}.")
    where = os.path.join(place.folder, pattern.format(split="*"))
    return Content(list(found.refs.values()), list(found.images.values()), list(found.annotations.values()),
                   [{"id": id_, "name": name} for id_, name in found.categories.items()], place.image_dir,
                   tuple(line_files.values()), where, where, line_files)


def _parsed(path: str, number: int, line: str, on_fault: OnFault) -> Entry | None:
    """A line's object; None after reporting what is wrong with it."""
    problem = ""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        problem = f"is not a whole JSON object ({error}); it may be cut off"
    else:
        wrong = [name for name, kind in FIELDS.items()
                 if not isinstance(entry, dict) or not isinstance(entry.get(name), kind)]
        if wrong:
            problem = f"must be a JSON object with {', '.join(FIELDS)} and segmentation, but lacks {wrong[0]}"
        elif not isinstance(entry.get("segmentation"), dict | list):
            problem = "has no segmentation"
    if problem:
        on_fault("malformed line", f"{path}, line {number} {problem}. {WHERE_TO_GET_IT}.")
        return None
    return entry


class _Found:
    """Collects the entries of all lines."""

    def __init__(self, rule: str, category_names: tuple[str, ...] = ()):
        self.rule = rule
        self.refs: dict[Id, Entry] = {}
        self.annotations: dict[Id, Entry] = {}
        self.images: dict[Id, Entry] = {}
        self.categories: dict[Id, str] = dict(enumerate(names_of(rule) if rule else category_names))
        self.ref_of: dict[tuple[Any, ...], Id] = {}
        self.sentences = 0

    def add(self, entry: Entry, split: str, line: int) -> str:
        """Adds the sentence of a line, and its ref if that is new. Returns which id of it is another's, else ''."""
        split = entry["split"] if isinstance(entry.get("split"), str) else split
        own = "ref_id" if isinstance(entry.get("ref_id"), Id) else "ann_id"
        key = (own, split, entry[own]) if isinstance(entry.get(own), Id) else (split, line)
        if own == "ref_id" and key not in self.ref_of and entry["ref_id"] in self.refs:
            return f"has the ref_id {entry['ref_id']!r} of a ref of another split"
        image = self.images.get(entry["image_id"])
        if image and image["file_name"] != entry["file_name"]:
            return f"has the image_id {entry['image_id']!r} of the image {image['file_name'][:100]!r}"
        for name, ann_id in ((own, self.refs[self.ref_of[key]]["ann_id"] if key in self.ref_of else None),
                             ("ann_id", entry.get("ann_id"))):
            known = self.annotations.get(ann_id) if isinstance(ann_id, Id) else None
            if known and (known["image_id"], known["segmentation"]) != (entry["image_id"], entry["segmentation"]):
                return f"has the {name} {entry[name]!r} of another mask or image"
        if key not in self.ref_of:
            self.ref_of[key] = self._add_ref(entry, split, line)
        sentence_id = entry["sent_id"] if isinstance(entry.get("sent_id"), Id) else self.sentences
        self.refs[self.ref_of[key]]["sentences"].append(make_sentence(sentence_id, entry["sent"]))
        self.sentences += 1
        return ""

    def _add_ref(self, entry: Entry, split: str, line: int) -> Id:
        free = next(number for number in itertools.count(len(self.refs)) if number not in self.refs)
        ref_id = entry["ref_id"] if isinstance(entry.get("ref_id"), Id) else free
        ann_id = entry["ann_id"] if isinstance(entry.get("ann_id"), Id) else f"of ref {ref_id}"
        category_id = self._category(entry)
        segmentation = entry["segmentation"]
        size = next((part["size"] for part in ([segmentation] if isinstance(segmentation, dict) else segmentation)
                     if isinstance(part, dict) and isinstance(part.get("size"), list) and len(part["size"]) == 2), None)
        height, width = size or (entry.get("height"), entry.get("width"))
        self.images.setdefault(entry["image_id"], {"id": entry["image_id"], "file_name": entry["file_name"],
                                                   "height": height, "width": width})
        extra: Entry = {name: entry[name] for name in ("bbox", "area") if name in entry}
        self.annotations.setdefault(ann_id, {"id": ann_id, "image_id": entry["image_id"], "category_id": category_id,
                                             "segmentation": segmentation, **extra})
        no_target = {"no_target": True} if entry.get("no_target") is True else {}
        self.refs[ref_id] = {"ref_id": ref_id, "ann_id": ann_id, "image_id": entry["image_id"],
                             "category_id": category_id, "file_name": entry["file_name"], "split": split,
                             "line": line, "sentences": [], **no_target}
        return ref_id

    def _category(self, entry: Entry) -> Id:
        """The category that a line names, else the one by the data set's rule over phrases, else `OTHER`."""
        id_, name = entry.get("category_id"), entry.get("category_name")
        if isinstance(id_, Id):
            self.categories.setdefault(id_, name if isinstance(name, str) else str(id_))
            return id_
        wanted = name if isinstance(name, str) else category_of_phrase(entry["sent"], self.rule) if self.rule else OTHER
        known = next((id_ for id_, own in self.categories.items() if own == wanted), None)
        if known is None:
            known = len(self.categories)
            self.categories[known] = wanted
        return known
