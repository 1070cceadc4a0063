"""The index over a data set of referring expressions, with the method names that users of REFER know.

A *ref* is one referred object with its sentences; it points to one *annotation* (the object's mask and
box) and to one image. Ids are whatever the files use, int or str. H, W: height and width in pixels.
"""

import os
import reprlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NoReturn

import numpy as np

from refer import readers
from refer.entries import (
    ANNOTATION_FIELDS,
    CATEGORY_FIELDS,
    IMAGE_FIELDS,
    REF_FIELDS,
    SENTENCE_FIELDS,
    WHERE_TO_GET_IT,
    Entry,
    Id,
    OnFault,
    by_id,
    refuse,
)
from refer.located import LocatedRefs, StoredMask
from refer.masks import is_finite
from refer.own import Dataset, find_dataset
from utils import UserError

Ids = Id | Iterable[Id]


class REFER(LocatedRefs):
    """One data set under one way of splitting it. Masks are decoded only when asked for.

    Attributes:
        ROOT_DIR, DATA_DIR, IMAGE_DIR: folders of this module, of the annotations, of the images (str).
        dataset, layout, is_own: the data set's name and facts, and whether a dataset.json describes it.
        format: how the files are written, a key of `refer.readers.READERS`. notes: harmless things found in them,
            (kind, message). annotation_files: paths of the files that the index was read from; refs_path and
            instances_path: what messages about refs and about annotations name; line_files: split -> the file whose
            line numbers its refs have.
        data: {"dataset", "refs", "images", "annotations", "categories"}, as the reader found them.
        Refs, Anns, Imgs: id -> entry. Cats: category id -> name. Sents: sentence id -> sentence.
        imgToRefs, imgToAnns, catToRefs: id -> list of entries, for ids that have any.
        refToAnn, annToRef, sentToRef: id -> entry. sentToTokens: sentence id -> list of words.

    Every error is a UserError that says what was given, what is needed, and what to do.
    """

    def __init__(
        self, data_root: str | os.PathLike, dataset: str | Dataset = "refcoco", splitBy: str = "unc",
        drop_overlaps: bool = False, on_fault: OnFault = refuse,
    ) -> None:
        """Reads the annotation files of DATA_ROOT/DATASET, in whatever format of `refer.readers` they are.

        `dataset` may also be the folder of a data set of one's own, or what `refer.own.find_dataset` found.

        `drop_overlaps` makes masks of several parts as the original code does (see `decode_segmentation`).

        Raises UserError if `dataset` or `splitBy` is unknown, a folder or file is missing or damaged, an
        entry lacks a required field, one id has two entries, a ref has no sentence, or a ref points to an
        annotation, image or category that does not exist. Images are not looked at.

        `on_fault` takes each fault of an entry instead. Where it returns, that entry is left out of the index
        (not of `data`), as is a ref that lacks what it needs, and reading continues.
        """
        found = dataset if isinstance(dataset, Dataset) else find_dataset(dataset, data_root)
        self.dataset, self.layout, self.is_own = found.name, found.layout, found.is_own
        self.splitBy, self.drop_overlaps = found.split_by(splitBy), drop_overlaps

        self.ROOT_DIR = os.path.abspath(os.path.dirname(__file__))
        self.DATA_DIR = os.path.join(found.data_root, self.layout.folder or self.dataset)
        self.format, content = readers.read(found, self.splitBy, on_fault)
        self.IMAGE_DIR, self.annotation_files, self.notes = content.image_dir, content.files, content.notes
        self.refs_path, self.instances_path = content.refs_path, content.instances_path
        self.line_files = content.line_files
        self.data: dict[str, Any] = {
            "dataset": self.dataset, "refs": content.refs, "images": content.images, "annotations": content.annotations,
            "categories": content.categories}
        self._build_index(on_fault)

    def _build_index(self, on_fault: OnFault) -> None:
        instances_path = self.instances_path
        self.Refs = by_id(self.data["refs"], "ref", REF_FIELDS, self.refs_path, on_fault)
        self.Anns = by_id(self.data["annotations"], "annotation", ANNOTATION_FIELDS, instances_path, on_fault)
        self.Imgs = by_id(self.data["images"], "image", IMAGE_FIELDS, instances_path, on_fault)
        categories = by_id(self.data["categories"], "category", CATEGORY_FIELDS, instances_path, on_fault)
        self.Cats: dict[Id, str] = {id_: category["name"] for id_, category in categories.items()}
        if not self.data["refs"]:
            raise UserError(f"{self.refs_path} holds no refs. Download it again: {WHERE_TO_GET_IT}.")
        incomplete = (
            self._without_target("annotation", "ann_id", self.Anns, on_fault)
            | self._without_target("image", "image_id", self.Imgs, on_fault)
            | self._without_target("category", "category_id", self.Cats, on_fault)
            | self._without_sentences(on_fault)
        )
        self.Refs = {ref_id: ref for ref_id, ref in self.Refs.items() if ref_id not in incomplete}

        self.imgToAnns: dict[Id, list[Entry]] = {}
        for annotation in self.Anns.values():
            self.imgToAnns.setdefault(annotation["image_id"], []).append(annotation)
        self.imgToRefs: dict[Id, list[Entry]] = {}
        self.catToRefs: dict[Id, list[Entry]] = {}
        self.refToAnn: dict[Id, Entry] = {}
        self.annToRef: dict[Id, Entry] = {}
        self.Sents: dict[Id, Entry] = {}
        self.sentToRef: dict[Id, Entry] = {}
        self.sentToTokens: dict[Id, list[str]] = {}
        for ref_id, ref in self.Refs.items():
            self.imgToRefs.setdefault(ref["image_id"], []).append(ref)
            self.catToRefs.setdefault(ref["category_id"], []).append(ref)
            self.refToAnn[ref_id] = self.Anns[ref["ann_id"]]
            self.annToRef[ref["ann_id"]] = ref
            for sentence in ref["sentences"]:
                self.Sents[sentence["sent_id"]] = sentence
                self.sentToRef[sentence["sent_id"]] = ref
                self.sentToTokens[sentence["sent_id"]] = sentence["tokens"]

    # Ids: each filter takes one id or several, and an empty one does not filter. They come in file order.

    def getRefIds(
        self, image_ids: Ids = (), cat_ids: Ids = (), ref_ids: Ids = (), split: str = ""
    ) -> list[Id]:
        """Ids of the refs that pass every filter given.

        `split` is a split's exact name, except that "test" means every split with "test" in its name, and
        "testA", "testB", "testC" every test split with that letter ("testAB" counts for both).
        Raises UserError for an id that the data set lacks and for a split without any ref.
        """
        images = set(self._known("image", image_ids, self.Imgs))
        categories = set(self._known("category", cat_ids, self.Cats))
        chosen = set(self._known("ref", ref_ids, self.Refs))
        return [
            ref["ref_id"]
            for ref in (self._refs_of_split(split) if split else self.Refs.values())
            if (not images or ref["image_id"] in images)
            and (not categories or ref["category_id"] in categories)
            and (not chosen or ref["ref_id"] in chosen)
        ]

    def getAnnIds(self, image_ids: Ids = (), cat_ids: Ids = (), ref_ids: Ids = ()) -> list[Id]:
        """Ids of the annotations that pass every filter given, whether or not a ref points to them.

        Raises UserError for an id that the data set lacks.
        """
        images = set(self._known("image", image_ids, self.Imgs))
        categories = set(self._known("category", cat_ids, self.Cats))
        referred = {ref["ann_id"] for ref in self.loadRefs(ref_ids)}
        return [
            annotation["id"]
            for annotation in self.Anns.values()
            if (not images or annotation["image_id"] in images)
            and (not categories or category_of(annotation) in categories)
            and (not referred or annotation["id"] in referred)
        ]

    def getImgIds(self, ref_ids: Ids = ()) -> list[Id]:
        """Ids of the images of these refs, each once; without refs, of all images.

        Raises UserError for a ref that the data set lacks.
        """
        refs = self.loadRefs(ref_ids)
        return list(dict.fromkeys(ref["image_id"] for ref in refs) if refs else self.Imgs)

    def getCatIds(self) -> list[Id]:
        """Ids of all categories."""
        return list(self.Cats)

    def split_counts(self) -> dict[str, int]:
        """How many refs each split has, under the name that the refs file gives it."""
        return dict(Counter(ref["split"] for ref in self.Refs.values()))

    # Entries: one id or several in, a list out, in the order of the ids. UserError for an unknown id.

    def loadRefs(self, ref_ids: Ids = ()) -> list[Entry]:
        """The refs with these ids."""
        return [self.Refs[ref_id] for ref_id in self._known("ref", ref_ids, self.Refs)]

    def loadAnns(self, ann_ids: Ids = ()) -> list[Entry]:
        """The annotations with these ids."""
        return [self.Anns[ann_id] for ann_id in self._known("annotation", ann_ids, self.Anns)]

    def loadImgs(self, image_ids: Ids = ()) -> list[Entry]:
        """The images' entries (file name, height, width) with these ids."""
        return [self.Imgs[image_id] for image_id in self._known("image", image_ids, self.Imgs)]

    def loadCats(self, cat_ids: Ids = ()) -> list[str]:
        """The names of these categories."""
        return [self.Cats[category_id] for category_id in self._known("category", cat_ids, self.Cats)]

    # Where a ref's image and mask lie, for `LocatedRefs`, given the ref or its id.

    def image_file(self, ref: Entry | Id) -> tuple[str, str]:
        return self.IMAGE_DIR, self.Imgs[self._as_ref(ref)["image_id"]]["file_name"]

    def line_of(self, ref: Entry | Id) -> tuple[str | None, int, Id]:
        ref = ref if isinstance(ref, dict) else self._as_ref(ref)
        return self.line_files.get(ref["split"]), ref.get("line", 0), ref["ref_id"]

    def stored_mask(self, ref: Entry | Id) -> StoredMask:
        ref = self._as_ref(ref)
        image = self.Imgs[ref["image_id"]]
        return StoredMask(self.refToAnn[ref["ref_id"]], ref["ann_id"], image.get("height"), image.get("width"),
                          self.drop_overlaps, self.dataset, self.instances_path)

    def getRefBox(self, ref: Entry | Id) -> list[float]:
        """Box [x, y, width, height] in pixels, COCO's form for every data set, given the ref or its id.

        RRSIS-D's files hold corners (x1, y1, x2, y2): width is x2 - x1, height y2 - y1.
        Raises UserError if the annotation's box is missing or not four numbers.
        """
        ref = self._as_ref(ref)
        box = self.refToAnn[ref["ref_id"]].get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(is_finite(value) for value in box):
            self._refuse_annotation(ref, f"its bbox must be four numbers, but is {reprlib.repr(box)}")
        if self.layout.corner_boxes and self.format != "coco":
            x1, y1, x2, y2 = box
            return [x1, y1, x2 - x1, y2 - y1]
        return list(box)

    def getMask(self, ref: Entry | Id) -> dict[str, Any]:
        """{"mask": (H, W) uint8 of 0 and 1, "area": how many ones, int}, given the ref or its id.

        Raises what `LocatedRefs.mask` raises.
        """
        mask = self.mask(ref)
        return {"mask": mask, "area": int(np.count_nonzero(mask))}

    def _as_ref(self, ref: Entry | Id) -> Entry:
        ref_id: Any = ref.get("ref_id") if isinstance(ref, dict) else ref   # `loadRefs` refuses what is no id
        return self.loadRefs([ref_id])[0]

    def _known(self, what: str, ids: Ids, known: Collection[Id]) -> list[Id]:
        """The ids, one or several, as a list, after making sure that the data set has each of them."""
        wanted = list(ids) if isinstance(ids, Iterable) and not isinstance(ids, str) else [ids]
        for wanted_id in wanted:
            if not isinstance(wanted_id, Id | np.integer) or wanted_id not in known:
                raise UserError(
                    f"{self.dataset} ({self.splitBy}) has no {what} with id {reprlib.repr(wanted_id)}: "
                    "getRefIds, getAnnIds, getImgIds and getCatIds list the ids there are."
                )
        return wanted

    def _refs_of_split(self, split: str) -> list[Entry]:
        refs = [ref for ref in self.Refs.values() if split_includes(split, ref["split"])]
        if not refs:
            raise missing_split(split, self.dataset, self.splitBy, self.layout.splits[self.splitBy], self.refs_path,
                                self.split_counts())
        return refs

    def _without_target(self, what: str, field: str, known: Collection[Id], on_fault: OnFault) -> set[Id]:
        """Ids of the refs whose `field` is none of the known ids, after reporting each."""
        lost = [ref for ref in self.Refs.values() if ref[field] not in known]
        for ref in lost:
            on_fault(
                f"unknown {what}",
                f"{self.refs_path}: ref {ref['ref_id']!r} points to {what} {ref[field]!r}, which "
                f"{self.instances_path} lacks (so for {len(lost)} of {len(self.Refs)} refs). Take both "
                f"files from the same download: {WHERE_TO_GET_IT}.",
            )
        return {ref["ref_id"] for ref in lost}

    def _without_sentences(self, on_fault: OnFault) -> set[Id]:
        """Ids of the refs without a sentence or with a faulty one, after reporting each."""
        lost = set()
        for ref_id, ref in list(self.Refs.items()):
            where = f"{self.refs_path}, ref {ref_id!r}"
            sentences = by_id(ref["sentences"], "sentence", SENTENCE_FIELDS, where, on_fault).values()
            if not ref["sentences"]:
                on_fault("no sentence", f"{where} has no sentence, but needs at least one: {WHERE_TO_GET_IT}.")
            if not sentences or any(sentence not in sentences for sentence in ref["sentences"]):
                lost.add(ref_id)
            elif len(sentences) < len(ref["sentences"]):   # repeated word for word: it is one sample
                self.Refs[ref_id] = {**ref, "sentences": list(sentences)}
        return lost

    def _refuse_annotation(self, ref: Entry, problem: str) -> NoReturn:
        raise UserError(
            f"{self.dataset}, ref {ref['ref_id']!r}, annotation {ref['ann_id']!r}: {problem}. Repair it in "
            f"{self.instances_path} or download that file again: {WHERE_TO_GET_IT}."
        )


def missing_split(split: str, dataset: str, split_by: str, splits: Iterable[str], refs_path: str,
                  counts: Mapping[str, int]) -> UserError:
    """The error for a split that no ref belongs to.

    `splits` are those that the data set should have; `counts` has the number of refs of each existing split.
    """
    published = any(split_includes(split, name) for name in splits)
    listed = ", ".join(f"{name} ({count} refs)" for name, count in counts.items())
    return UserError(
        f"The split '{split}' of {dataset} (split by {split_by}) is {'empty' if published else 'unknown'}: "
        f"{refs_path} has {listed}. test.py takes one of these as --split, and train.py needs train and val"
        + (f", or get the complete file: {WHERE_TO_GET_IT}." if published else ".")
    )


def split_includes(asked: str, own: str) -> bool:
    """Whether a ref whose split is `own` belongs to the split `asked` (see REFER.getRefIds)."""
    if asked == "test":
        return "test" in own
    if asked in ("testA", "testB", "testC"):
        return own.startswith("test") and asked[-1] in own.removeprefix("test")
    return asked == own


def category_of(annotation: Entry) -> Id | None:
    """The category id of an annotation, None if it has none; RRSIS-D calls it `categories_id`."""
    return annotation.get("category_id", annotation.get("categories_id"))
