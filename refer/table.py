"""Refs in arrays: all that training and evaluation read of one or several data sets, without the index's dicts.

A dict for each entry takes a hundred times the bytes that it holds, and its reference counts make each worker process
copy it page by page. Arrays take no more than they hold, and processes share them. R refs, S sentences, I images.
"""
import gc
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from refer.categories import class_names
from refer.entries import Entry, Id
from refer.located import LocatedRefs, StoredMask
from refer.own import parse_datasets
from refer.refer import REFER, missing_split, split_includes

Arrays = dict[str, np.ndarray]
# The fields of an annotation that are kept, as JSON. The search for cycles, a third of the time, is left out.
_PICTURE, _PARTS = ("mask_path", "object_above"), ("id", "segmentation")
_encode = json.JSONEncoder(check_circular=False, separators=(",", ":")).encode


class Texts(Sequence[str]):
    """Strings in two arrays: their UTF-8 bytes in a row, (bytes,) uint8, and where each ends, (n + 1,) int64 from 0."""

    def __init__(self, content: np.ndarray, ends: np.ndarray):
        self.content, self.ends = content, ends

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # nothing asks for slices
        return self.content[self.ends[index]:self.ends[index + 1]].tobytes().decode("utf-8", "surrogatepass")


def text_arrays(name: str, texts: Iterable[str]) -> Arrays:
    """The two arrays of `Texts`, under `name` and `name`_ends."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    ends = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)), out=ends[1:])
    return {name: np.frombuffer(b"".join(encoded), np.uint8), f"{name}_ends": ends}


def read_arrays(data_root: str | os.PathLike, datasets: str, split_by: str = "unc",
                drop_overlaps: bool = False) -> Arrays:
    """The arrays of a `RefTable` of one or several data sets ('refcoco,refcocog:umd,FOLDER'), one after the other.

    Raises UserError as `REFER` does.
    """
    chosen = parse_datasets(datasets, split_by, data_root)
    with _no_garbage_collection():
        return arrays_of(REFER(data_root, dataset, way, drop_overlaps) for dataset, way in chosen)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Pauses garbage collection, which would take longer than making the millions of new entries."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def arrays_of(indices: Iterable[REFER]) -> Arrays:
    """The arrays of a `RefTable`: the refs of each index in turn."""
    columns: dict[str, list[Any]] = {name: [] for name in (
        "ref_ids", "image_of", "category_of", "split_of", "source_of", "line", "no_target", "masks", "sentences_of",
        "sentences", "sent_ids", "image_ids", "image_names", "image_sizes")}
    categories: dict[str, int] = {}
    splits: dict[str, int] = {}
    sources: list[dict[str, Any]] = []
    for index in indices:
        _add(index, len(sources), columns, categories, splits)
        sources.append({
            "dataset": index.dataset, "splitBy": index.splitBy, "drop_overlaps": index.drop_overlaps,
            "image_dir": index.IMAGE_DIR, "annotation_files": index.annotation_files, "refs_path": index.refs_path,
            "instances_path": index.instances_path, "line_files": dict(index.line_files),
            "splits": index.layout.splits[index.splitBy], "each_sentence": index.layout.each_sentence,
            "is_own": index.is_own, "notes": [message for _, message in index.notes]})
    arrays: Arrays = {}
    for name in ("ref_ids", "masks", "sentences", "sent_ids", "image_ids", "image_names"):
        arrays |= text_arrays(name, columns[name])
    arrays |= text_arrays("categories", categories) | text_arrays("splits", splits)
    arrays |= text_arrays("sources", map(json.dumps, sources))
    for name, kind in (("image_of", np.int32), ("category_of", np.int32), ("split_of", np.int16),
                       ("source_of", np.int16), ("line", np.int32), ("no_target", np.bool_)):
        arrays[name] = np.array(columns[name], kind)
    arrays["image_sizes"] = np.array(columns["image_sizes"], np.int32).reshape(-1, 2)
    arrays["first_sentence"] = np.cumsum([0, *columns["sentences_of"]], dtype=np.int64)
    return arrays


def _written(id_: Id) -> str:
    """An id as JSON."""
    return str(id_) if type(id_) is int else json.dumps(id_)


def _add(index: REFER, source: int, columns: dict[str, list[Any]], categories: dict[str, int],
         splits: dict[str, int]) -> None:
    """Appends an index's refs, and those images that have any."""
    image_of: dict[Id, int] = {}
    for ref in index.Refs.values():
        image_id = ref["image_id"]
        if image_id not in image_of:
            image_of[image_id] = len(columns["image_ids"])
            image = index.Imgs[image_id]
            sides = [side if isinstance(side := image.get(name), int) and 0 < side < 2 ** 31 else -1
                     for name in ("height", "width")]
            columns["image_ids"].append(_written(image_id))
            columns["image_names"].append(image["file_name"])
            columns["image_sizes"].append(sides)
        annotation = index.refToAnn[ref["ref_id"]]
        kept = _PICTURE if "mask_path" in annotation else _PARTS
        columns["ref_ids"].append(_written(ref["ref_id"]))
        columns["image_of"].append(image_of[image_id])
        columns["category_of"].append(categories.setdefault(index.Cats[ref["category_id"]], len(categories)))
        columns["split_of"].append(splits.setdefault(ref["split"], len(splits)))
        columns["source_of"].append(source)
        columns["line"].append(ref.get("line", 0))
        columns["no_target"].append(bool(ref.get("no_target")))
        columns["masks"].append(_encode({name: annotation.get(name) for name in kept}))
        columns["sentences_of"].append(len(ref["sentences"]))
        columns["sentences"] += [sentence["raw"] for sentence in ref["sentences"]]
        columns["sent_ids"] += [_written(sentence["sent_id"]) for sentence in ref["sentences"]]


class RefTable(LocatedRefs):
    """Refs by row, from the arrays that `arrays_of` makes.

    Attributes: `no_target` (R,) bool, whether the mask is empty by design; `source_of` (R,), the data set; `image_of`
    (R,), the image; `first_sentence` (R + 1,), where each ref's sentences begin among all; `sources`, the facts of each
    data set.
    """

    def __init__(self, arrays: Arrays):
        self.texts = {name: Texts(arrays[name], arrays[f"{name}_ends"]) for name in (
            "ref_ids", "masks", "sentences", "sent_ids", "image_ids", "image_names", "categories", "splits")}
        self.no_target, self.source_of, self.image_of = arrays["no_target"], arrays["source_of"], arrays["image_of"]
        self.first_sentence, self.image_sizes = arrays["first_sentence"], arrays["image_sizes"]
        self.split_of, self.category_of, self.line = arrays["split_of"], arrays["category_of"], arrays["line"]
        self.sources = [json.loads(text) for text in Texts(arrays["sources"], arrays["sources_ends"])]

    @classmethod
    def of(cls, refs: "REFER | RefTable") -> "RefTable":
        """The refs of an index as a table."""
        return refs if isinstance(refs, RefTable) else cls(arrays_of([refs]))

    def __len__(self) -> int:
        return len(self.image_of)

    @property
    def datasets(self) -> list[str]:
        """Names of the data sets."""
        return [source["dataset"] for source in self.sources]

    def class_names(self, source: int = 0) -> tuple[str, ...]:
        """The names of one data set's classes as sentences spell them (see `refer.categories`)."""
        own = np.unique(self.category_of[self.source_of == source]).tolist()
        return class_names(self.datasets[source], [self.texts["categories"][number] for number in own])

    @property
    def annotation_files(self) -> list[str]:
        """Paths of the files that the refs were read from."""
        return [path for source in self.sources for path in source["annotation_files"]]

    @property
    def notes(self) -> list[str]:
        """What the readers say of harmless things in the annotation files, refs that they united, for example."""
        return [note for source in self.sources for note in source["notes"]]

    def rows(self, split: str, source: int | None = None) -> np.ndarray:
        """Rows of the refs of a split (see `REFER.getRefIds`), of one data set or of all, in order.

        Raises UserError if a data set has none.
        """
        included = np.array([split_includes(split, name) for name in self.texts["splits"]])[self.split_of]
        chosen = range(len(self.sources)) if source is None else (source,)
        for number in chosen:
            if not np.any(included & (self.source_of == number)):
                own = self.sources[number]
                counts = Counter(self.texts["splits"][kind] for kind in self.split_of[self.source_of == number])
                raise missing_split(split, own["dataset"], own["splitBy"], own["splits"], own["refs_path"], counts)
        return np.flatnonzero(included & np.isin(self.source_of, list(chosen)))

    def training_samples(self) -> int:
        """The number of samples of the train split: its refs, or their sentences where an epoch shows each of them."""
        rows = self.rows("train")
        sentences = self.first_sentence[rows + 1] - self.first_sentence[rows]
        return int(np.where(self.each_sentence[rows], sentences, 1).sum())

    def ref(self, row: int) -> Entry:
        """`row`, `ref_id`, `image_id`, `category` (its name), `no_target` and `sentences`: `sent_id`, `raw`."""
        sentences = range(self.first_sentence[row], self.first_sentence[row + 1])
        return {"row": row, "ref_id": json.loads(self.texts["ref_ids"][row]),
                "image_id": json.loads(self.texts["image_ids"][self.image_of[row]]),
                "category": self.texts["categories"][self.category_of[row]], "no_target": bool(self.no_target[row]),
                "sentences": [{"sent_id": json.loads(self.texts["sent_ids"][place]),
                               "raw": self.texts["sentences"][place]} for place in sentences]}

    # Where a ref's image and mask lie, for `LocatedRefs`, given its row.

    def image_file(self, row: int) -> tuple[str, str]:
        folder = self.sources[self.source_of[row]]["image_dir"]
        return folder, self.texts["image_names"][self.image_of[row]]

    def line_of(self, row: int) -> tuple[str | None, int, Id]:
        path = self.sources[self.source_of[row]]["line_files"].get(self.texts["splits"][self.split_of[row]])
        return path, int(self.line[row]), json.loads(self.texts["ref_ids"][row])

    def stored_mask(self, row: int) -> StoredMask:
        source, stored = self.sources[self.source_of[row]], json.loads(self.texts["masks"][row])
        height, width = (side if side > 0 else None for side in self.image_sizes[self.image_of[row]].tolist())
        return StoredMask(stored, stored.get("id", 0), height, width, source["drop_overlaps"], source["dataset"],
                          source["instances_path"])

    @property
    def each_sentence(self) -> np.ndarray:
        """(R,) bool: whether an epoch of training shows all sentences of a ref, as is usual of its data set, or one."""
        return np.array([source["each_sentence"] for source in self.sources])[self.source_of]


class RefRows(Sequence[Entry]):
    """Some rows of a table as a sequence of refs, each made when it is asked for."""

    def __init__(self, table: RefTable, rows: np.ndarray):
        self.table, self.rows = table, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Entry:  # type: ignore[override]  # nothing asks for slices
        return self.table.ref(int(self.rows[place]))
