"""Data sets of one's own, which a dataset.json describes, and the search for a data set by its name or folder.

A folder with a dataset.json holds annotation files in any format of `refer.readers` and, below it, a folder of images.
This module imports no package that is slow to load, since `--help` needs it.
"""
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from refer.categories import class_names
from refer.layouts import DATASETS, DEFAULT_SPLIT_BY, Layout
from schema import Range, Rule, check
from utils import UserError, read_json

DESCRIPTION = "dataset.json"
# Of `refer.readers.READERS`, which is slow to load.
FORMATS = ("jsonl", "refer", "coco", "phrases", "grefcoco", "nwpu_refer", "ris_lad", "earthreason")
OWN_SPLIT_BY, OWN_IMAGES = "own", "images"
LARGEST_DESCRIPTION_BYTES = 2**24
HOW_TO_IMPORT = ("tools/import_dataset.py makes one from pictures, masks and sentences of your own (docs/datasets.md, "
                 "\"Your own\")")
SPLITS = ("train", "val", "test", "testA", "testB", "testC")  # the names of splits, also in file names


def stays_inside(name: str) -> bool:
    """Whether a file name from the data is relative and leads nowhere above its folder."""
    return bool(name) and "\0" not in name and not os.path.isabs(name) and ".." not in re.split(r"[/\\]", name)


def is_own_name(name: str) -> bool:
    """Whether a data set of one's own may have this name: it becomes a part of file names, and none of the table's."""
    return bool(re.fullmatch(r"\w[\w.+-]{0,59}", name)) and name not in DATASETS and ".." not in name


@dataclass
class Description:
    """The content of a dataset.json. `images` is the folder of images, a path below that of the dataset.json."""

    name: Annotated[str, Rule(is_own_name, "at most 60 letters, digits, _, ., + and -, and no name of a known data "
                                           "set")]
    splits: Annotated[list[Literal[SPLITS]], Range(1, len(SPLITS)),  # type: ignore[valid-type]
                      Rule(lambda splits: len(set(splits)) == len(splits), "none of them twice")]
    images: Annotated[str, Rule(stays_inside, "a path inside the folder of dataset.json")] = OWN_IMAGES
    format: Literal[FORMATS] = "jsonl"  # type: ignore[valid-type]
    split_by: Annotated[str, Rule(re.compile(r"\w{1,40}").fullmatch, "at most 40 letters and digits")] = OWN_SPLIT_BY
    title: Annotated[str, Range(0, 200)] = ""
    max_tokens: Annotated[int, Range(3, 512)] = 20
    categories: Annotated[list[Annotated[str, Range(1, 200)]], Range(0, 100_000)] = ()  # type: ignore[assignment]
    each_sentence: bool = False
    licence: Annotated[str, Range(0, 2_000)] = ""
    citation: Annotated[str, Range(0, 10_000)] = ""

    closed = True   # a misspelt field would be ignored


@dataclass(frozen=True)
class Dataset:
    """A data set that was found: its name, its facts, and the data root below which the layout's folders lie."""

    name: str
    layout: Layout
    data_root: str

    @property
    def is_own(self) -> bool:
        """Whether a dataset.json describes it."""
        return self.name not in DATASETS

    def split_by(self, given: str) -> str:
        """The value of `--splitBy`; the default stands for the only way of splitting if there is one.

        Raises UserError if the data set is not split so.
        """
        splits = self.layout.splits
        way = next(iter(splits)) if given == DEFAULT_SPLIT_BY and len(splits) == 1 else given
        if way not in splits:
            raise UserError(f"{self.name} is not split by '{way}': choose --splitBy from {', '.join(splits)}.")
        return way


def is_own(folder: str | os.PathLike) -> bool:
    """Whether a dataset.json lies in the folder."""
    return os.path.isfile(os.path.join(folder, DESCRIPTION))


def read_own(folder: str | os.PathLike) -> Dataset:
    """The data set of a folder with a dataset.json. Raises UserError if a field is missing or wrong."""
    path = os.path.join(folder, DESCRIPTION)
    if os.path.getsize(path) > LARGEST_DESCRIPTION_BYTES:
        raise UserError(f"{path} has more than {LARGEST_DESCRIPTION_BYTES >> 20} MiB: it describes a data set in a few "
                        "lines and holds no annotations")
    given = read_json(path)
    check(Description, given, path)
    said = Description(**given)
    base = os.path.normpath(folder)
    if os.path.basename(base) in ("", ".", ".."):   # without a name of its own
        base = os.path.abspath(base)
    parent, own = os.path.split(base)
    return Dataset(said.name, Layout(
        os.path.join(own, said.images), {said.split_by: tuple(said.splits)}, title=said.title, format=said.format,
        folder=own, max_tokens=said.max_tokens, each_sentence=said.each_sentence,
        category_names=tuple(said.categories), licence=said.licence, citation=said.citation), parent or ".")


def description(name: str, layout: Layout, format: str, images: str) -> dict[str, Any]:
    """The content of a dataset.json for a data set of one's own whose images lie in the folder `images` beside it."""
    (split_by, splits), = layout.splits.items()
    return {"name": name, "title": layout.title, "format": format, "images": images, "split_by": split_by,
            "splits": list(splits), "max_tokens": layout.max_tokens, "categories": list(layout.category_names),
            "each_sentence": layout.each_sentence, "licence": layout.licence, "citation": layout.citation}


def find_dataset(dataset: str, data_root: str | os.PathLike) -> Dataset:
    """The data set of a name or of a folder.

    A name is one of the table, else that of a folder with a dataset.json below the data root, else of one here; what
    has a slash is a folder. Raises UserError if there is none, or if its dataset.json is wrong.
    """
    if dataset in DATASETS:
        return Dataset(dataset, DATASETS[dataset], os.fspath(data_root))
    below = os.path.join(data_root, dataset)
    for folder in (dataset,) if os.path.basename(dataset) != dataset else (below, dataset):
        if dataset and is_own(folder):
            return read_own(folder)
    if os.path.basename(dataset) != dataset and os.path.isdir(dataset):
        raise UserError(f"--dataset {dataset}: the folder has no {DESCRIPTION}, which a data set of your own has; "
                        f"{HOW_TO_IMPORT}. {what_is_there(dataset) or 'Of a known one give the name'}.")
    there = what_is_there(data_root)
    raise UserError(f"Unknown data set '{dataset}': choose --dataset from {', '.join(DATASETS)}, or give a folder with "
                    f"a {DESCRIPTION}; {HOW_TO_IMPORT}." + (f" {there}." if there else ""))


def what_is_there(data_root: str | os.PathLike) -> str:
    """The data sets that a folder is or holds, and the flags that read them, in a sentence; '' if there is none."""
    if is_own(data_root):
        return f"The folder {os.fspath(data_root)} is a data set of its own: give --dataset {os.fspath(data_root)}"
    try:
        below = sorted(os.listdir(os.fspath(data_root)))
    except (OSError, ValueError):
        return ""
    below = [name for name in below if os.path.isdir(os.path.join(data_root, name))]
    folders = {layout.folder or name: name for name, layout in DATASETS.items()}
    found = [folders.get(name, name) for name in below
             if name in folders or (is_own(os.path.join(data_root, name)))]
    if not found:
        return ""
    return (f"The folder {os.fspath(data_root)} holds {', '.join(found[:10])}{' …' * (len(found) > 10)}: give "
            f"--refer_data_root {os.fspath(data_root)} --dataset {found[0]}")


def split_names(text: str) -> list[tuple[str, str]]:
    """'refcocog:umd, ./my/roofs' -> [('refcocog', 'umd'), ('./my/roofs', '')].

    The folder of a data set of one's own may have a comma or a colon in its name.
    """
    if is_own(text):
        return [(text, "")]
    parts = [part.strip() for part in text.split(",")]
    return [(part, "") if is_own(part) else part.partition(":")[::2] for part in parts]


def parse_datasets(text: str, split_by: str = DEFAULT_SPLIT_BY,
                   data_root: str | os.PathLike = ".") -> list[tuple[Dataset, str]]:
    """'refcoco,refcocog:umd,./my/roofs' -> the data sets and their ways of splitting.

    A name without its own ':SPLITBY' takes `split_by`. Raises UserError for an unknown name or way, and for a data
    set that is named twice.
    """
    chosen: list[tuple[Dataset, str]] = []
    for name, own in split_names(text):
        dataset = find_dataset(name, data_root)
        way = dataset.split_by(own or split_by)
        if (dataset.name, way) in [(other.name, other_way) for other, other_way in chosen]:
            raise UserError(f"--dataset {text} names {dataset.name} twice.")
        chosen.append((dataset, way))
    return chosen


def as_written(text: str) -> str:
    """A value of `--dataset` with each folder in one spelling, so that a resumed run may spell it differently."""
    def written(name: str) -> str:
        if os.path.basename(name) == name:
            return name
        plain = os.path.normpath(name)
        return plain if os.path.basename(plain) != plain else os.path.join(os.curdir, plain)

    return ",".join(written(name) + (f":{way}" if way else "") for name, way in split_names(text))


def default_max_tokens(datasets: Iterable[Dataset]) -> int:
    """The largest default of --max_tokens among these data sets."""
    return max(dataset.layout.max_tokens for dataset in datasets)


def class_names_of(dataset: str, data_root: str | os.PathLike) -> tuple[str, ...]:
    """The class names of a data set as sentences spell them (see `refer.categories`); none if they are not known."""
    found = find_dataset(dataset, data_root)
    return class_names(found.name, found.layout.category_names)
