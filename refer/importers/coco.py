"""COCO's JSON whose annotations have a caption or referring expressions, as LabelStudio and CVAT export it, too."""
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from refer.importers import table
from refer.importers.rows import (
    Findings,
    Options,
    Row,
    Shape,
    file_beside,
    sentences_of,
    shape_of,
    split_of_file,
)
from schema import check
from utils import UserError, read_json

# The fields of an annotation, or of its `attributes`, where sentences are looked for.
SENTENCES = ("sentences", "referring_expressions", "referring_expression", "captions", "caption", "expression",
             "sentence", "description", "text")
# Folders beside a file, or beside its folder, where programs put the pictures that it names.
_BELOW = ("", "images", "images/default", "..", "../images", "../images/default", "../images/{split}", "../data")

Entry = dict[str, Any]


@dataclass
class CocoFile:
    """The fields of a file that are read as a whole."""

    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]] = field(default_factory=list)


def read(sources: list[str], options: Options, found: Findings) -> Iterator[Row]:
    """The annotations of all files that have a sentence. Raises UserError for a file that is not in COCO's form."""
    spoken = read_sentences(options.sentences, options) if options.sentences else None
    for source in sources:
        content = read_json(source)
        check(CocoFile, content, source)
        split = split_of_file(source) if len(sources) > 1 else ""
        images = {str(image.get("id")): image for image in content["images"]}
        names = {str(entry.get("id")): str(entry.get("name")) for entry in content.get("categories", [])}
        pictures = _Pictures(source, options.images, split)
        silent = 0
        for number, annotation in enumerate(content["annotations"]):
            id_ = annotation.get("id")
            where = f"{source}, annotation {number if id_ is None else json.dumps(id_)}"
            sentences = spoken.get(str(id_), []) if spoken is not None else _sentences(annotation, options)
            if not sentences:
                silent += 1
                found.note("annotations without a sentence, left out", where)
                continue
            try:
                image = images.get(str(annotation.get("image_id")))
                yield _row(where, annotation, image, names, pictures, sentences, options)
            except ValueError as error:
                found.refuse(where, str(error))
        if content["annotations"] and silent == len(content["annotations"]):
            fields = sorted({str(name) for entry in content["annotations"][:100] for name in entry})
            raise UserError(
                f"{source}: no annotation has a sentence; they have {', '.join(fields)}. Name the field with --columns "
                "sentence=FIELD, or give a file that has the sentences of each annotation's id: --sentences FILE")


def read_sentences(path: str, options: Options) -> dict[str, list[str]]:
    """{id: its sentences} from a JSON object, or from a table with the columns `id` and `sentence`.

    Raises UserError if the file is neither.
    """
    if path.endswith(table.SUFFIXES):
        found = Findings()
        names, lines = table.lines_of(path, found)
        columns = table.find_columns(names, Options(options.work, options.columns), path, ("id", "sentence"))
        sentences: dict[str, list[str]] = {}
        for _, cells in lines:
            sentences.setdefault(str(cells.get(columns["id"], "")).strip(), []).extend(
                sentences_of(cells.get(columns["sentence"])))
        if found.bad:
            raise UserError(found.bad[0])
        return sentences
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"--sentences {path} must be a JSON object of an id's sentence or sentences, or a table with "
                        "the columns id and sentence")
    return {str(id_): sentences_of(value) for id_, value in content.items()}


def _sentences(annotation: Entry, options: Options) -> list[str]:
    """The sentences in an annotation's own fields or, as CVAT exports them, in its `attributes`."""
    attributes = annotation.get("attributes")
    named = options.columns.get("sentence")
    for name in (named,) if named else SENTENCES:
        for place in (annotation, attributes if isinstance(attributes, dict) else {}):
            if sentences := sentences_of(place.get(name)):
                return sentences
    return []


def _row(where: str, annotation: Entry, image: Entry | None, names: dict[str, str], pictures: "_Pictures",
         sentences: list[str], options: Options) -> Row:
    """One annotation. Raises ValueError, saying what is wrong with it."""
    if image is None:
        raise ValueError(f"its image_id {annotation.get('image_id')!r} is that of no image")
    if not isinstance(image.get("file_name"), str) or not image["file_name"]:
        raise ValueError(f"its image {image.get('id')!r} has no file_name")
    no_target = annotation.get("no_target") is True
    segmentation = annotation.get("segmentation")
    if not segmentation and not no_target:
        raise ValueError("it has no segmentation" + (", only a box: draw its mask, or take the box for it in a table "
                                                     "with a column `box`" if annotation.get("bbox") else ""))
    width, height = image.get("width"), image.get("height")
    size = (width, height) if isinstance(width, int) and isinstance(height, int) and min(width, height) > 0 else None
    group = {**image, **annotation}.get(options.group, "") if options.group else ""
    return Row(where, pictures.find(image["file_name"]), sentences,
               Shape("[]") if no_target else shape_of(segmentation), pictures.split,
               names.get(str(annotation.get("category_id")), ""), str(annotation.get("id", "")), str(group),
               size_px=size, no_target=no_target)


class _Pictures:
    """Finds the pictures that a file names: the programs that write such files put them in various places."""

    def __init__(self, source: str, folder: str, split: str):
        beside = os.path.dirname(source)
        self.split = split
        self.folders = [folder] if folder else [os.path.join(beside, below.format(split=split)) for below in _BELOW]
        self.found: dict[str, str] = {}

    def find(self, name: str) -> str:
        """The path of a picture; where there is none, the path where it should be."""
        if name not in self.found:
            wanted = [file_beside(folder, spelt) for spelt in (name, os.path.basename(name.replace("\\", "/")))
                      for folder in self.folders]
            self.found[name] = next((path for path in wanted if os.path.isfile(path)), wanted[0])
        return self.found[name]
