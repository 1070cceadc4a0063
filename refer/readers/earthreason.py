"""EarthReason's format: folders SPLIT/images, SPLIT/labels and SPLIT/QAs; an image, a mask and a JSON file make a ref.

The files of a ref have one name, each with its own extension. Where the names of the three folders differ, the files
belong together in the order of their sorted names. `questions` are the sentences; without an `answer` they mean
nothing.
"""
import os
from typing import Any

from refer.categories import OTHER
from refer.entries import WHERE_TO_GET_IT, Content, Entry, OnFault, make_sentence, read_json
from refer.own import SPLITS
from refer.readers.place import Place
from utils import UserError

IMAGES, MASKS, QUESTIONS = PARTS = "images", "labels", "QAs"


def find(place: Place) -> list[str]:
    """The folders of questions that exist."""
    folders = (os.path.join(place.folder, split, QUESTIONS) for split in SPLITS)
    return [folder for folder in folders if os.path.isdir(folder)]


def read(place: Place, on_fault: OnFault) -> Content:
    """Reads the questions; pictures are named, but not opened. Raises UserError if files cannot be paired or read."""
    folders = find(place)
    if not folders:
        raise UserError(f"Missing the questions of {place.dataset}: there is no folder "
                        f"{os.path.join(place.folder, 'train', QUESTIONS)}. {WHERE_TO_GET_IT}.")
    refs: list[Entry] = []
    images: list[Entry] = []
    annotations: list[Entry] = []
    notes: list[tuple[str, str]] = []
    sentences = 0
    for split_folder in map(os.path.dirname, folders):
        split = os.path.basename(split_folder)
        for image, mask, asked in _triples(split_folder, on_fault, notes):
            questions, no_target = _questions(os.path.join(split_folder, QUESTIONS, asked), on_fault)
            if not questions:
                continue
            number = len(refs)
            images.append({"id": number, "file_name": f"{split}/{IMAGES}/{image}"})
            annotations.append({"id": number, "image_id": number, "category_id": 0, "object_above": 0,
                                "mask_path": os.path.join(split_folder, MASKS, mask)})
            refs.append({"ref_id": number, "ann_id": number, "image_id": number, "category_id": 0, "split": split,
                         "no_target": no_target, "sentences": [make_sentence(sentences + place, text)
                                                               for place, text in enumerate(questions)]})
            sentences += len(questions)
    return Content(refs, images, annotations, [{"id": 0, "name": OTHER}], place.folder, tuple(folders),
                   os.path.join(place.folder, "*", QUESTIONS), os.path.join(place.folder, "*", MASKS), notes=notes)


def _triples(folder: str, on_fault: OnFault, notes: list[tuple[str, str]]) -> list[tuple[str, ...]]:
    """The files of a split that belong together: image, mask, questions. Raises UserError if they cannot be paired."""
    names = [_names(os.path.join(folder, part)) for part in PARTS]
    by_stem = [{os.path.splitext(name)[0]: name for name in of_part} for of_part in names]
    common = by_stem[0].keys() & by_stem[1].keys() & by_stem[2].keys()
    everything = by_stem[0].keys() | by_stem[1].keys() | by_stem[2].keys()
    if not common and len(set(map(len, names))) == 1:
        notes.append(("paired by order", f"{folder}: the first are {', '.join(of_part[0] for of_part in names)}"))
        return list(zip(*names, strict=True))
    if not common:
        raise UserError(f"{folder}: {', '.join(f'{len(n)} files in {p}' for n, p in zip(names, PARTS, strict=True))} "
                        f"have different names and numbers, so none belong together. {WHERE_TO_GET_IT}.")
    for stem in sorted(everything - common):
        lacking = [part for part, stems in zip(PARTS, by_stem, strict=True) if stem not in stems]
        on_fault("incomplete ref", f"{folder}: {stem} has no file in {' and '.join(lacking)}. {WHERE_TO_GET_IT}.")
    return [tuple(stems[stem] for stems in by_stem) for stem in sorted(common)]


def _names(folder: str) -> list[str]:
    """The sorted names of a folder's files. Raises UserError if there are none."""
    try:
        found = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise UserError(f"Missing folder {folder} ({error.strerror}). {WHERE_TO_GET_IT}.") from error
    if not found:
        raise UserError(f"The folder {folder} is empty. {WHERE_TO_GET_IT}.")
    return found


def _questions(path: str, on_fault: OnFault) -> tuple[list[str], bool]:
    """The questions of a file, and whether they mean nothing; none after reporting what is wrong."""
    content = read_json(path)
    questions = content.get("questions") if isinstance(content, dict) else None
    if isinstance(questions, str):
        questions = [questions]
    if not isinstance(questions, list) or not questions or not all(isinstance(text, str) for text in questions):
        on_fault("malformed entry", f"{path} must be an object whose questions are texts, at least one. "
                                    f"{WHERE_TO_GET_IT}.")
        return [], False
    return questions, not _said(content.get("answer"))


def _said(answer: Any) -> bool:
    """Whether an answer says anything: it is a text, or a list with one, that is not blank."""
    texts = answer if isinstance(answer, list) else [answer]
    return any(text is not None and str(text).strip() for text in texts)
