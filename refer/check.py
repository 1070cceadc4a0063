"""Finds every fault of a data set's entries in one pass; `refer.check_files` finds those of masks and images.

`REFER` refuses a data set at its first fault. Here its checks report each fault and continue, and further checks find
what `REFER` would notice only when a mask or an image is read.
"""
import os
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from refer.entries import REF_FIELDS, Entry, Id, by_id
from refer.layouts import DATASETS
from refer.refer import REFER, category_of, split_includes
from utils import UserError


@dataclass(frozen=True)
class Finding:
    """One thing found. A fault stops or falsifies training or evaluation; a note is harmless."""

    kind: str  # a key of FAULTS or of NOTES
    is_fault: bool
    message: str


FAULTS = {
    "malformed line": "a line of a file of lines is not of the form that it must have, so its sample is left out",
    "malformed entry": "a field is missing or has another type; what points to this entry may be counted too",
    "repeated id": "an id must stand for one thing: nobody can tell which was meant",
    "unsafe id": "it holds what could lead a file named by it elsewhere; it is escaped wherever it names one",
    "unknown annotation": "a ref points to an annotation that is not there, so it has no mask",
    "unknown image": "a ref points to an image that is not there",
    "unknown category": "the list of categories lacks one that is used; the files may be of different versions",
    "no sentence": "a ref without a sentence refers to nothing",
    "empty sentence": "nothing to read: the network would be taught to guess",
    "annotation of another image": "a ref's mask would be laid over the wrong picture",
    "empty split": "a split that its authors published has no ref",
    "malformed segmentation": "the mask cannot be decoded",
    "polygon outside its image": "its points lie more than 1 px beyond the border; the mask would be cut off there",
    "empty mask": "no pixel is referred to, so every prediction is wrong",
    "missing mask": "complete the download (refer/data/README.md says from where)",
    "incomplete ref": "one of the files that make a ref is missing, so it is left out",
    "mask without target": "the sentences of a mask are said to mean nothing, but the mask is not empty",
    "no mask": "a picture that cannot be read, or has more than two values: fetch that file again",
    "missing image": "complete the download (refer/data/README.md says from where)",
    "broken image": "fetch that file again (refer/data/README.md says from where)",
    "size mismatch": "image file, its entry and the masks differ in size, so they may not show the same ground",
}
NOTES = {
    "repeated entry": "an entry stands there twice, word for word; one is used",
    "empty mask": "a known quirk of RRSIS-D (users report three): masks of zeros, which score 0 whatever is predicted",
    "size mismatch": "a known quirk of RRSIS-D (users report 14): harmless, since image and mask are resized to one "
                     "square, each on its own",
    "not 800×800": "a known quirk of RRSIS-D (users report 17): harmless, since every image is resized to a square",
    "turned picture": "viewers and Predictor turn it as its EXIF data say, training and evaluation read it as stored, "
                      "as the original programs do",
    "area": "`area` is more than a tenth off the mask's pixels, as known of RRSIS-D: nothing reads it",
    "box": "the bbox is not four numbers: training and evaluation do not read it, REFER.getRefBox refuses it",
    "categories_id": "RRSIS-D's spelling of category_id, which is understood",
    "other category": "a ref and its annotation differ in category: training reads neither, figures per category go by "
                      "the ref's",
    "not as published": "a category's id or name: training reads neither, but figures per category go by these names",
    "file name of refs": "refs carry their annotation's number in `file_name`, as known of RefCOCO: the name that is "
                         "used is the image entry's",
    "other file name": "a ref names another file than its image's entry does: the entry's is used",
    "other split": "a name that its authors do not use: only a --split of that name reads these refs",
    "ref without sentences": "a known quirk of gRefCOCO: such refs are left out",
    "united refs": "as known of NWPU-Refer: a sentence about several objects is one sample, whose mask is their union",
    "paired by order": "image, mask and questions have different names and are paired in the order of these; look at "
                       "some (--pictures)",
    "long sentence": "the network does not see the words beyond --max_tokens",
    "image in train and elsewhere": "evaluation on it measures memory, too; where it is so as published, figures stay "
                                    "comparable",
    "image in two splits": "none of them train, so nothing leaks",
}
QUIRKS = {"rrsisd": ("empty mask", "size mismatch")}  # kinds of faults that are only notes in a data set

# The published number of refs of each split (refer/data/README.md).
PUBLISHED_REFS = {(name, split_by): dict(counts) for name, layout in DATASETS.items()
                  for split_by, counts in layout.published_refs.items()}
# The published names of categories; a name's place is its id.
PUBLISHED_CATEGORIES = {
    "rrsisd": ("Expressway-Service-area", "Expressway-toll-station", "airplane", "airport", "baseballfield",
               "basketballcourt", "bridge", "chimney", "dam", "golffield", "groundtrackfield", "harbor", "overpass",
               "ship", "stadium", "storagetank", "tenniscourt", "trainstation", "vehicle", "windmill"),
}
RRSISD_SIZE = (800, 800)
BORDER_PX = 1  # how far beyond its image a polygon may reach: some tools count a pixel's far edge
AREA_SHARE = 10  # `area` is off if the difference times this exceeds it


def read_index(data_root: str | os.PathLike, dataset: str, split_by: str) -> tuple[REFER, list[Finding]]:
    """The index of the sound entries, and the faults of the others, in `REFER`'s words.

    Raises UserError where not even the files can be read, or for an unknown data set.
    """
    found: list[Finding] = []
    index = REFER(data_root, dataset, split_by,
                  on_fault=lambda kind, message: found.append(Finding(kind, True, message)))
    return index, found


def well_formed_refs(index: REFER) -> list[Entry]:
    """All refs whose own fields are sound, including those that the index leaves out because of what they point to."""
    return list(by_id(index.data["refs"], "ref", REF_FIELDS, index.annotation_files[0], lambda *_: None).values())


# Entries

def check_entries(index: REFER) -> Iterator[Finding]:
    """The findings in annotation files that `REFER` does not report. No mask is decoded."""
    refs = well_formed_refs(index)
    yield from (Finding(kind, False, message) for kind, message in index.notes)
    yield from _unsafe_ids(refs)
    yield from _repeated_entries(index, refs)
    yield from _categories(index)
    yield from _sentences(refs)
    yield from _targets(index, refs)
    yield from _annotations(index)
    yield from _file_names(index, refs)
    yield from _splits(index, refs)


def _unsafe_ids(refs: list[Entry]) -> Iterator[Finding]:
    """Reports ids that are not plain names, since files of predictions are named by ref and sentence."""
    for ref in refs:
        sentences = [sentence.get("sent_id") for sentence in ref["sentences"] if isinstance(sentence, dict)]
        for what, id_ in [("ref_id", ref["ref_id"]), *(("sent_id", id_) for id_ in sentences)]:
            if isinstance(id_, str) and not re.fullmatch(r"\w[\w .+-]*", id_):
                yield Finding("unsafe id", True, f"ref {ref['ref_id']!r}: the {what} {id_!r}")


def _repeated_entries(index: REFER, refs: list[Entry]) -> Iterator[Finding]:
    lists = [(what, "id", index.data[what]) for what in ("images", "annotations", "categories")]
    lists += [(f"sentences of ref {ref['ref_id']!r}", "sent_id", ref["sentences"]) for ref in refs]
    for what, id_field, entries in lists:
        seen: dict[Id, Entry] = {}
        for entry in entries:
            entry_id = entry.get(id_field) if isinstance(entry, dict) else None
            if not isinstance(entry_id, Id):
                continue
            if entry_id not in seen:
                seen[entry_id] = entry
            elif seen[entry_id] == entry:
                yield Finding("repeated entry", False, f"{what}: {id_field} {entry_id!r}")


def _categories(index: REFER) -> Iterator[Finding]:
    names = PUBLISHED_CATEGORIES.get(index.dataset, index.layout.category_names)
    if not names:
        return
    published: dict[Id, str] = dict(enumerate(names))
    for id_ in [*published, *(id_ for id_ in index.Cats if id_ not in published)]:
        own, name = index.Cats.get(id_), published.get(id_)
        if own != name:
            yield Finding("not as published", False,
                          f"category {id_!r} is {'missing' if own is None else reprlib.repr(own)}, published "
                          + ("are 0 to " + str(len(published) - 1) if name is None else f"is {name!r}"))


def _sentences(refs: list[Entry]) -> Iterator[Finding]:
    owners: dict[Id, Id] = {}
    for ref in refs:
        ref_id = ref["ref_id"]
        for sentence in (sentence for sentence in ref["sentences"] if isinstance(sentence, dict)):
            sentence_id, raw = sentence.get("sent_id"), sentence.get("raw")
            if isinstance(raw, str) and not raw.strip():
                yield Finding("empty sentence", True, f"ref {ref_id!r}: `raw` of sentence {sentence_id!r} is {raw!r}")
            if isinstance(sentence_id, Id) and owners.setdefault(sentence_id, ref_id) != ref_id:
                yield Finding("repeated id", True, f"refs {owners[sentence_id]!r} and {ref_id!r} both have a sentence "
                                                   f"with the sent_id {sentence_id!r}")


def _targets(index: REFER, refs: list[Entry]) -> Iterator[Finding]:
    for ref in refs:
        annotation = index.Anns.get(ref["ann_id"])
        if annotation is None:
            continue  # REFER has reported it
        where = f"ref {ref['ref_id']!r}, annotation {ref['ann_id']!r}"
        if annotation["image_id"] != ref["image_id"] and ref["image_id"] in index.Imgs:
            yield Finding("annotation of another image", True, f"{where}: the ref's image is {ref['image_id']!r}, the "
                                                               f"annotation's {annotation['image_id']!r}")
        if category_of(annotation) != ref["category_id"]:
            yield Finding("other category", False, f"{where}: the ref's is {ref['category_id']!r}, the annotation's "
                                                   f"{category_of(annotation)!r}")
    for ref in index.Refs.values():
        if "bbox" not in index.refToAnn[ref["ref_id"]] and index.format != "refer":
            continue  # other formats need none
        try:
            index.getRefBox(ref)
        except UserError as error:
            yield Finding("box", False, str(error))


def _annotations(index: REFER) -> Iterator[Finding]:
    for annotation in index.Anns.values():
        category = category_of(annotation)
        if not isinstance(category, Id) or category not in index.Cats:
            yield Finding("unknown category", True, f"annotation {annotation['id']!r} is of category "
                                                    f"{reprlib.repr(category)}, which is not listed beside it")
        if "category_id" not in annotation and "categories_id" in annotation:
            yield Finding("categories_id", False, f"annotation {annotation['id']!r}")


def _file_names(index: REFER, refs: list[Entry]) -> Iterator[Finding]:
    for ref in refs:
        own, image = ref.get("file_name"), index.Imgs.get(ref["image_id"])
        if own is None or image is None or own == image["file_name"]:
            continue
        stem, extension = os.path.splitext(image["file_name"])
        suffixed = isinstance(own, str) and re.fullmatch(re.escape(stem) + r"_\d+" + re.escape(extension), own)
        yield Finding("file name of refs" if suffixed else "other file name", False,
                      f"ref {ref['ref_id']!r}: {reprlib.repr(own)}, its image's entry {image['file_name']!r}")


def _splits(index: REFER, refs: list[Entry]) -> Iterator[Finding]:
    published = index.layout.splits[index.splitBy]
    counts = Counter(ref["split"] for ref in refs)
    there = {ref["split"] for ref in index.data["refs"] if isinstance(ref, dict) and isinstance(ref.get("split"), str)}
    for name in published:   # a split whose refs are all left out has faults of its own
        if not any(split_includes(name, own) for own in there):
            yield Finding("empty split", True, f"{name}: {index.annotation_files[0]} has {dict(counts)}")
    for own, count in counts.items():
        if not any(split_includes(name, own) for name in published):
            yield Finding("other split", False, f"{own!r} ({count} refs); published are {', '.join(published)}")

    splits_of: dict[str, Counter[str]] = {}
    for ref in refs:
        if ref["image_id"] in index.Imgs:
            splits_of.setdefault(index.Imgs[ref["image_id"]]["file_name"], Counter())[ref["split"]] += 1
    for file_name, splits in splits_of.items():
        if len(splits) > 1:
            kind = "image in train and elsewhere" if "train" in splits else "image in two splits"
            refs_of = ", ".join(f"{count} refs of {split}" for split, count in splits.items())
            yield Finding(kind, False, f"{file_name}: {refs_of}")


def long_sentences(index: REFER, max_tokens: int, words_of: Callable[[str], list[str]]) -> Iterator[Finding]:
    """Sentences whose words, [CLS] and [SEP] are more than `max_tokens`, with the words that are cut.

    `words_of` gives a sentence's word pieces.
    """
    for ref in index.Refs.values():
        for sentence in ref["sentences"]:
            words = words_of(sentence["raw"])
            if len(words) + 2 > max_tokens:
                cut = " ".join(words[max_tokens - 1:]).replace(" ##", "") or "[SEP] alone"
                yield Finding("long sentence", False, f"{index.where(ref)}, sentence {sentence['sent_id']!r}: "
                                                      f"{len(words) + 2} tokens; beyond {max_tokens}: {cut}")


# Summary

def summarize(index: REFER) -> dict[str, Any]:
    """Counts of what the index holds, as plain data.

    `refs`, `sentences` and `images` (those with refs), the same for each of `splits`; `categories` maps names to
    refs, `categories_by_split` every name, in the file's order, to refs of each split, `published` splits to refs and
    `published_sentences` splits to sentences (None where the published counts are not known here). `no_target` counts
    refs to nothing, `refs_in_file` also the refs that faults leave out of the index.
    """
    refs = list(index.Refs.values())
    splits = list(dict.fromkeys([*index.layout.splits[index.splitBy], *index.split_counts()]))  # published ones first
    refs_of = Counter((index.Cats[ref["category_id"]], ref["split"]) for ref in refs)
    return {
        "refs_in_file": len(index.data["refs"]), **_counts(refs),
        "splits": {split: _counts([ref for ref in refs if ref["split"] == split]) for split in index.split_counts()},
        "categories": dict(Counter(index.Cats[ref["category_id"]] for ref in refs).most_common()),
        "categories_by_split": {name: {split: refs_of[name, split] for split in splits}
                                for name in index.Cats.values()},
        "published": PUBLISHED_REFS.get((index.dataset, index.splitBy)),
        "published_sentences": dict(index.layout.published_sentences) or None,
        "no_target": sum(bool(ref.get("no_target")) for ref in refs),
    }


def _counts(refs: list[Entry]) -> dict[str, int]:
    return {"refs": len(refs), "sentences": sum(len(ref["sentences"]) for ref in refs),
            "images": len({ref["image_id"] for ref in refs})}
