"""RefSegRS' and RISBench's format: a text file for each split, lines `NAME PHRASE`; masks are pictures.

A ref is a name within a split; the lines that name it are its sentences. The file decides the split:
RISBench's val file names `train_*.png`, too.
"""
import os
import re

from refer.categories import OTHER, category_of_phrase, names_of
from refer.entries import WHERE_TO_GET_IT, Content, Entry, Id, OnFault, make_sentence, read_lines, require
from refer.layouts import PhraseFiles
from refer.readers.place import Place

PATTERN = "output_phrase_{split}.txt"
# The folders of masks and images of a data set that was converted to this format from another.
CONVERTED, CONVERTED_IMAGES = PhraseFiles("mask"), "img_rgb"


def find(place: Place) -> list[str]:
    """The phrase files that exist."""
    return list(place.files_of_splits(PATTERN).values())


def read(place: Place, on_fault: OnFault) -> Content:
    """Reads the phrases; pictures are named, but not opened. Raises UserError if there is no phrase file."""
    line_files = place.files_of_splits(PATTERN)
    if not line_files:
        require(os.path.isfile, os.path.join(place.folder, PATTERN.format(split="train")),
                f"the phrases of {place.dataset}")
    how = place.layout.phrases or CONVERTED
    image_dir = place.image_dir if place.layout.phrases else os.path.join(place.folder, CONVERTED_IMAGES)
    mask_dir = os.path.join(place.folder, how.mask_folder)
    refs: dict[tuple[str, str], Entry] = {}
    images: dict[str, Entry] = {}
    ref_ids: set[Id] = set()
    sentences = 0
    for split, path in line_files.items():
        for number, line in read_lines(path, on_fault):
            name, phrase = _parsed(path, number, line, how.suffix, on_fault)
            if not name:
                continue
            if (split, name) not in refs:
                image = images.setdefault(name, {"id": _id_of(name), "file_name": name + how.suffix})
                ref_id = _ref_id(image["id"], split, ref_ids)
                ref_ids.add(ref_id)
                refs[split, name] = {"ref_id": ref_id, "ann_id": image["id"], "image_id": image["id"],
                                     "category_id": 0, "file_name": image["file_name"], "split": split, "line": number,
                                     "sentences": []}
            refs[split, name]["sentences"].append(make_sentence(sentences, phrase))
            sentences += 1
    rule = place.layout.categories
    names = names_of(rule) if rule else (OTHER,)
    for ref in refs.values() if rule else ():
        ref["category_id"] = names.index(_category(ref, rule))
    categories = {ref["image_id"]: ref["category_id"] for ref in refs.values()}
    annotations = [
        {"id": image["id"], "image_id": image["id"], "category_id": categories[image["id"]],
         "mask_path": os.path.join(mask_dir, image["file_name"]), "object_above": how.object_above}
        for image in images.values()]
    return Content(list(refs.values()), list(images.values()), annotations,
                   [{"id": number, "name": name} for number, name in enumerate(names)], image_dir,
                   tuple(line_files.values()), os.path.join(place.folder, PATTERN.format(split="*")), mask_dir,
                   line_files)


def _parsed(path: str, number: int, line: str, suffix: str, on_fault: OnFault) -> tuple[str, str]:
    """Name and phrase of a line; two empty strings after reporting one that is not of this form."""
    name, *phrase = line.split(maxsplit=1)
    name = name.removesuffix(suffix)
    problem = ""
    if not phrase:
        problem = f"has no phrase after {name!r}"
    elif not re.fullmatch(r"\d+" if suffix else r"[^/\\]+\.\w+", name):
        problem = f"begins with {name!r}, not with {'an id, all digits' if suffix else 'the file name of an image'}"
    if problem:
        on_fault("malformed line", f"{path}, line {number} {problem}; a line is NAME PHRASE. {WHERE_TO_GET_IT}.")
        return "", ""
    return name, phrase[0]


def _id_of(name: str) -> Id:
    """The name without its extension, as a number if it is one."""
    stem = name.rsplit(".", 1)[0]
    return int(stem) if stem.isdecimal() and str(int(stem)) == stem else stem


def _ref_id(image_id: Id, split: str, taken: set[Id]) -> Id:
    """The image's number if it is one, with the split's name if another split has it; else a running number."""
    if isinstance(image_id, str):
        return len(taken)
    return f"{image_id}-{split}" if image_id in taken else image_id


def _category(ref: Entry, rule: str) -> str:
    """The category in the first of a ref's sentences that names one, else `OTHER`."""
    named = (category_of_phrase(sentence["raw"], rule) for sentence in ref["sentences"])
    return next((name for name in named if name != OTHER), OTHER)
