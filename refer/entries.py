"""What all readers share: the content that they return, entries by id, faults, and files that must exist."""
import json
import os
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Annotated, Any, NoReturn

from refer.own import stays_inside
from schema import Id as IdField
from schema import Rule, finder, shown, words
from utils import UserError

Id = int | str
Entry = dict[str, Any]  # a ref, annotation, image, category or sentence, exactly as its file has it
OnFault = Callable[[str, str], None]  # called with the kind of a fault, in a few words, and its message

WHERE_TO_GET_IT = "refer/data/README.md says how to lay out each data set and where to get it"


class Fields(dict[str, Any]):
    """Names and types of the fields that an entry needs; the first is its id."""

    def __init__(self, **kinds: Any):
        super().__init__(kinds)
        self.finders = [(name, finder(kind)) for name, kind in kinds.items()]   # found once, not for each entry

    def wrong(self, entry: Entry) -> list[str]:
        """Names of the fields that are missing or of another type."""
        return [name for name, find in self.finders if find(entry.get(name))]


# What the index relies on, field by field, as schema.py reads it. RRSIS-D's annotations spell their category
# `categories_id`.
_FileName = Annotated[str, Rule(stays_inside, "a path inside the folder of images")]
REF_FIELDS = Fields(ref_id=IdField, ann_id=IdField, image_id=IdField, category_id=IdField, split=str, sentences=list)
SENTENCE_FIELDS = Fields(sent_id=IdField, raw=str, tokens=list)
ANNOTATION_FIELDS = Fields(id=IdField, image_id=IdField)
IMAGE_FIELDS = Fields(id=IdField, file_name=_FileName)
CATEGORY_FIELDS = Fields(id=IdField, name=str)


@dataclass
class Content:
    """A data set as a reader returns it, in REFER's terms for every file format.

    An annotation has `segmentation`, or `mask_path`, a picture that stays on disk (and then `object_above`). A ref
    from a file of lines has `line`, the number of its first one. `no_target` is true of a ref whose mask is empty by
    design; its annotation has no parts.
    """

    refs: list[Entry]
    images: list[Entry]
    annotations: list[Entry]
    categories: list[Entry]
    image_dir: str
    files: tuple[str, ...]  # all annotation files that were read
    refs_path: str  # the file or files that a message about refs names
    instances_path: str
    line_files: Mapping[str, str] = dataclass_field(default_factory=dict)  # split: file that its refs' lines are of
    notes: list[tuple[str, str]] = dataclass_field(default_factory=list)  # harmless things found: kind and message


def refuse(kind: str, message: str) -> NoReturn:
    """The default treatment of a fault by `REFER`: raises UserError."""
    raise UserError(message)


def require(test: Callable[[str], bool], path: str | os.PathLike, what: str) -> None:
    """Raises UserError unless the file or folder is there."""
    if not test(os.fspath(path)):
        kind = "folder" if test is os.path.isdir else "file"
        raise UserError(f"Missing {what}: there is no {kind} {os.fspath(path)}. {WHERE_TO_GET_IT}.")


def read_json(path: str) -> Any:
    """The content of a JSON file. Raises UserError if it cannot be read or is not JSON."""
    try:
        with open(path, "rb") as file:
            return json.load(file)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). Check that you may read it.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not valid JSON ({error}). It may be truncated: download it again, {WHERE_TO_GET_IT}."
        ) from error


def read_instances(path: str) -> dict[str, list[Entry]]:
    """The images, annotations and categories of a file in COCO's form. Raises UserError if it is none."""
    content = read_json(path)
    names = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in names):
        raise UserError(
            f"{path} must be a JSON object with the lists {', '.join(names)}. Download it again: "
            f"{WHERE_TO_GET_IT}."
        )
    return {name: content[name] for name in names}


def read_lines(path: str, on_fault: OnFault) -> list[tuple[int, str]]:
    """The lines of a UTF-8 file that are not blank, each with its number from 1. Raises UserError if unreadable."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). Check that you may read it.") from error
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{path} is UTF-16: save it as UTF-8 (iconv -f utf-16 -t utf-8 {os.path.basename(path)} > "
                        "utf8.txt)")
    lines = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            on_fault("malformed line", f"{path}, line {number} is not UTF-8 text ({error.reason}). {WHERE_TO_GET_IT}.")
            continue
        if text:
            lines.append((number, text))
    return lines


def make_sentence(sentence_id: Id, raw: str) -> Entry:
    """A sentence's entry from its text alone."""
    sent = " ".join(raw.lower().split())
    return {"sent_id": sentence_id, "raw": raw, "sent": sent, "tokens": sent.split()}


def by_id(
    entries: object, what: str, fields: Fields, where: str, on_fault: OnFault = refuse
) -> dict[Id, Entry]:
    """The entries by their id (the first of `fields`), each with all fields and of the right types.

    An entry repeated word for word is harmless and is accepted, unless it is a ref, which would be scored twice. Any
    other fault is reported to `on_fault` and its entry left out; of two entries with one id, the second. Raises
    UserError if `entries` is no list.
    """
    if not isinstance(entries, list):
        raise UserError(
            f"{where} must hold a list of {what} entries, but holds {reprlib.repr(entries)}. "
            f"{WHERE_TO_GET_IT}."
        )
    id_field = next(iter(fields))
    found: dict[Id, Entry] = {}
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            on_fault(
                "malformed entry",
                f"{where}: {what} entry {position} (from 0) must be a dict with {', '.join(fields)}, but is "
                f"{reprlib.repr(entry)}. {WHERE_TO_GET_IT}.",
            )
            continue
        wrong = fields.wrong(entry)
        for field in wrong:
            given = shown(entry[field]) if field in entry else "missing"
            on_fault(
                "malformed entry",
                f"{where}: '{field}' of {what} entry {position} (from 0) must be "
                f"{words(fields[field])}, but is {given}. {WHERE_TO_GET_IT}.",
            )
        if wrong:
            continue
        entry_id = entry[id_field]
        if entry_id not in found:
            found[entry_id] = entry
        elif what == "ref" or found[entry_id] != entry:
            on_fault(
                "repeated id",
                f"{where}: two {what} entries have the {id_field} {entry_id!r} (the second is entry "
                f"{position}, from 0), but an id must stand for one. Remove one, or download the file again: "
                f"{WHERE_TO_GET_IT}.",
            )
    return found
