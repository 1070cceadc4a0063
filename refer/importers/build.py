"""A data set made of rows: JSON Lines with masks as RLEs, the pictures and a dataset.json, whole or not at all."""
import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from refer.categories import OTHER
from refer.importers.masks import encoded
from refer.importers.pictures import is_turned, names_below_common_folder, read_size
from refer.importers.rows import Findings, MaskPicture, Options, Row
from refer.importers.splits import NAMES, deal, group_pictures
from refer.layouts import Layout
from refer.own import DESCRIPTION, OWN_IMAGES, OWN_SPLIT_BY, SPLITS, description
from refer.same_pictures import same_pictures
from schema import is_unicode
from utils import UserError

_PLAIN_ID = re.compile(r"\w[\w .+-]{0,99}")   # of a ref, which may name files of predictions

Watch = Callable[[Iterable[Any], str], Iterable[Any]]   # passes things on and may show progress
Key = tuple[Any, ...]


@dataclass
class Plan:
    """How the rows become a data set: the sizes, names and splits of pictures, and the refs."""

    sizes_px: dict[str, tuple[int, int]]   # (width, height) of the pictures that can be read
    names: dict[str, str]                  # path of a picture: its name below the folder of images
    split_of: dict[str, str]
    refs: dict[Key, list[Row]]             # rows of one ref
    ids: dict[Key, int | str]              # ref_id of each
    categories: list[str]
    max_tokens: int
    problem: str   # why pictures cannot be dealt out to the splits; '' if they can
    counts: dict[str, dict[str, int]] = field(default_factory=dict)   # split: refs, sentences and images, once written


def make_plan(rows: Sequence[Row], shares: Sequence[float], seed: int, max_tokens: int, found: Findings,
              watch: Watch) -> Plan:
    """Reads the header of each picture, once, and assigns pictures to splits, by the rows' own or by `shares`.

    What is wrong with a row is added to `found`, and the row is left out.
    """
    problems: dict[str, str] = {}
    sizes_px: dict[str, tuple[int, int]] = {}
    for path in watch(list(dict.fromkeys(row.image for row in rows)), "pictures"):
        try:
            sizes_px[path] = read_size(path)
        except ValueError as error:
            problems[path] = str(error)
    same = same_pictures(sizes_px)
    for path, first in same.items():
        if path != first:
            found.note("pictures that are the same as another, kept in its split", f"{path} is the same as {first}")
    refs = _refs_of([row for row in rows if _is_sound(row, sizes_px, problems, found)], found)
    refs, split_of, problem = _splits(refs, same, shares, seed, found)
    used = {row.image for rows_of_ref in refs.values() for row in rows_of_ref}
    categories = sorted({row.category or OTHER for rows_of_ref in refs.values() for row in rows_of_ref})
    for rows_of_ref in refs.values():
        for row in rows_of_ref:
            for sentence in row.sentences:
                if beyond := re.findall(r"\w+|[^\w\s]", sentence)[max_tokens - 2:]:
                    found.note(f"sentences of more than {max_tokens} tokens, [CLS] and [SEP] included, whose last "
                               "words are cut (--max_tokens)", f"{row.where}: beyond it {' '.join(beyond)}")
    return Plan(sizes_px, names_below_common_folder(used), split_of, refs, _ids(refs, found), categories, max_tokens,
                problem)


def _is_sound(row: Row, sizes_px: dict[str, tuple[int, int]], problems: dict[str, str], found: Findings) -> bool:
    """Whether a row's texts are valid and its picture can be read and has the row's size; reports it otherwise."""
    if odd := [text for text in (*row.sentences, row.category, str(row.id)) if not is_unicode(text)]:
        found.refuse(row.where, f"the text {odd[0][:60]!r} is not valid Unicode: it must be UTF-8 without lone "
                                "surrogates")
        return False
    size = sizes_px.get(row.image)
    if size and row.size_px in (None, size):
        return True
    problem = problems.get(row.image, "")
    if size and row.size_px:
        turned = _turned(row.image) if size == row.size_px[::-1] else ""
        problem = (f"its picture {row.image} is {size[0]}×{size[1]}, but was {row.size_px[0]}×{row.size_px[1]} when "
                   f"its mask was drawn{turned}")
    found.refuse(row.where, problem)
    return False


def _turned(path: str) -> str:
    """A remark for messages about sizes if viewers turn a picture."""
    return "; its EXIF data say that it is to be turned: save it turned, as its mask is" if is_turned(path) else ""


def _refs_of(rows: list[Row], found: Findings) -> dict[Key, list[Row]]:
    """The rows of each ref: those of one id in one source or, without ids, those of one mask of one picture."""
    refs: dict[Key, list[Row]] = {}
    for row in rows:
        source = row.where.rpartition(", ")[0]
        key: Key = (source, row.id) if row.id else (row.image, row.mask, row.no_target and row.where)
        first = refs.setdefault(key, [row])[0]
        if first is row:
            continue
        if (first.image, first.mask) != (row.image, row.mask):
            found.refuse(row.where, f"its id {row.id[:40]} is that of {first.where}, which has another picture or mask "
                                    "(name the column of the objects' ids with --columns id=NAME, or none with id=)")
            continue
        known = {sentence for other in refs[key] for sentence in other.sentences}
        for sentence in row.sentences:
            if sentence in known:
                found.note("sentences that an object has already, left out", f"{row.where}: {sentence}")
        row.sentences = [sentence for sentence in row.sentences if sentence not in known]
        refs[key].append(row)
    return refs


def _splits(refs: dict[Key, list[Row]], same: dict[str, str], shares: Sequence[float], seed: int,
            found: Findings) -> tuple[dict[Key, list[Row]], dict[str, str], str]:
    """The refs whose picture is in one split only, each picture's split (the rows' own, else drawn), and a problem."""
    rows = [row for rows_of_ref in refs.values() for row in rows_of_ref]
    given: dict[str, Row] = {}
    kept: dict[Key, list[Row]] = {}
    for key, rows_of_ref in refs.items():
        for row in rows_of_ref:
            picture = same[row.image]
            first = given.setdefault(picture, row)
            if row.split != first.split:
                found.refuse(row.where, f"its picture {row.image} is in the split {row.split or 'none'}, but in "
                                        f"{first.split or 'none'} at {first.where}: a picture belongs to one split")
            else:
                kept.setdefault(key, []).append(row)
    split_of = {row.image: given[same[row.image]].split for row in rows}
    undecided: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if not split_of[row.image]:
            undecided[row.image] |= {row.group} - {""}
    problem = ""
    if undecided:
        try:
            split_of |= deal(group_pictures(undecided, same), shares, seed)
        except UserError as error:   # is raised once all rows are checked
            split_of |= dict.fromkeys(undecided, NAMES[0])
            problem = str(error)
    return kept, split_of, problem


def _ids(refs: dict[Key, list[Row]], found: Findings) -> dict[Key, int | str]:
    """The ref_id of each ref: the sources' own if all have one and no two the same, else running numbers."""
    own = {key: rows[0].id for key, rows in refs.items()}
    plain = all(_PLAIN_ID.fullmatch(id_) for id_ in own.values())
    if not plain or len(set(own.values())) < len(own):
        if any(own.values()):
            found.note("the ids are not all different and plain, so the refs are numbered anew; refs", str(len(own)))
        return {key: number for number, key in enumerate(refs)}
    return {key: int(id_) if re.fullmatch(r"0|[1-9]\d{0,17}", id_) else id_ for key, id_ in own.items()}


def write(plan: Plan, options: Options, folder: Path | None, name: str, found: Findings, watch: Watch) -> None:
    """Encodes each mask and writes NAME_SPLIT.jsonl to the folder; without a folder it only reports what is wrong."""
    images = {path: number for number, path in enumerate(sorted(plan.names, key=lambda path: plan.names[path]))}
    sentence_id = 0
    seen: dict[str, set[str]] = defaultdict(set)
    with ExitStack() as stack:
        files: dict[str, TextIO] = {}
        for key, rows in watch(plan.refs.items(), "masks"):
            first, split = rows[0], plan.split_of[rows[0].image]
            size = plan.sizes_px[first.image]
            try:
                mask = encoded(first.mask, size, options, found, first.where, first.no_target)
            except ValueError as error:
                for row in rows:
                    turned = _turned(row.image) if "×" in str(error) and isinstance(row.mask, MaskPicture) else ""
                    found.refuse(row.where, f"{error}{turned}")
                continue
            if folder and split not in files:
                files[split] = stack.enter_context(open(folder / f"{name}_{split}.jsonl", "w", encoding="utf-8"))
            category = first.category or OTHER
            counts = plan.counts.setdefault(split, {"refs": 0, "sentences": 0, "images": 0})
            counts["refs"] += 1
            seen[split].add(first.image)
            counts["images"] = len(seen[split])
            for sentence in (sentence for row in rows for sentence in row.sentences):
                line = {"split": split, "image_id": images[first.image], "sent": sentence,
                        "file_name": plan.names[first.image], **mask, "category_id": plan.categories.index(category),
                        "category_name": category, "ann_id": plan.ids[key], "ref_id": plan.ids[key],
                        "sent_id": sentence_id, **({"no_target": True} if first.no_target else {})}
                sentence_id += 1
                counts["sentences"] += 1
                if folder:
                    files[split].write(json.dumps(line, ensure_ascii=False) + "\n")


def bring_pictures(plan: Plan, folder: Path, made_in: Path, copy: bool, watch: Watch) -> None:
    """Puts the pictures into the folder of images: as links or copies; those that an importer made are moved."""
    for path, name in watch(plan.names.items(), "copies" if copy else "links"):
        target = folder / OWN_IMAGES / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if Path(path).is_relative_to(made_in):
            os.replace(path, target)
        elif copy:
            shutil.copyfile(path, target)
        else:
            target.symlink_to(path)
    shutil.rmtree(made_in, ignore_errors=True)


def write_description(plan: Plan, folder: Path, name: str, title: str, licence: str, citation: str) -> None:
    """Writes dataset.json."""
    layout = Layout(OWN_IMAGES, {OWN_SPLIT_BY: tuple(split for split in SPLITS if split in plan.counts)}, title=title,
                    max_tokens=plan.max_tokens, category_names=tuple(plan.categories), licence=licence,
                    citation=citation)
    text = json.dumps(description(name, layout, "jsonl", OWN_IMAGES), indent=1, ensure_ascii=False)
    (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")


class NewFolder:
    """A folder that is written under another name beside it and gets its own at the end, unless an error comes first.

    Raises UserError if it exists already or cannot be written.
    """

    def __init__(self, out: Path):
        self.out, self.partial = out, out.with_name(f".{out.name}.partial-{os.getpid()}")

    def __enter__(self) -> Path:
        if os.path.lexists(self.out):
            raise UserError(f"--out {self.out} exists already: give another name, or remove it first")
        try:
            self.partial.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"--out {self.out} cannot be written: {error}") from error
        return self.partial

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            if kind is None:
                self.partial.rename(self.out)
        finally:
            shutil.rmtree(self.partial, ignore_errors=True)
