"""NWPU-Refer's format: a pickled list of refs to one object each, or to none, and COCO's JSON with polygons.

A sentence that means several objects stands there once for each of them. Refs of equal picture, sentence and split
therefore become one ref here, whose mask is the union of theirs. Sentences are equal whatever their case and spaces. A
ref of several sentences becomes a ref for each of them.
"""
import os
from dataclasses import dataclass, field, replace
from typing import Any

from refer.entries import WHERE_TO_GET_IT, Content, Entry, Fields, Id, IdField, OnFault, make_sentence
from refer.readers import refer_pickle
from refer.readers.place import Place
from refer.readers.targets import NO_TARGET, Targets

PREFIX = "new_"   # of both files' names
FIELDS = Fields(ref_id=IdField, image_id=IdField, split=str, sentences=list)
NOTHING: tuple[Any, ...] = (None, [], NO_TARGET["id"], [NO_TARGET["id"]])   # an `ann_id` that means no target


def find(place: Place) -> list[str]:
    """The refs file, if it exists."""
    return refer_pickle.find(place, PREFIX)


def read(place: Place, on_fault: OnFault) -> Content:
    """Reads both files. Raises UserError if one is missing or damaged."""
    found = refer_pickle.read(place, on_fault, PREFIX)
    targets, refs, notes = Targets(found.annotations), found.refs, found.notes
    if isinstance(refs, list):   # else the index says that it must be one
        refs, notes = _united(refs, targets, found.refs_path, on_fault)
    return replace(found, refs=refs, annotations=targets.annotations(), categories=[*found.categories, NO_TARGET],
                   notes=notes)


@dataclass
class _Sample:
    """One sentence about one picture in one split, and the refs that have it."""

    sentence: Any
    first: Entry   # the ref that has it first
    objects: dict[Id, Any] = field(default_factory=dict)   # each object's annotation, and the category of its ref
    refs: int = 0
    empty: int = 0   # refs that say that it means nothing


def _united(entries: list[Any], targets: Targets, path: str, on_fault: OnFault) -> tuple[list[Any],
                                                                                       list[tuple[str, str]]]:
    """The refs, one for each picture, sentence and split, and what is to be said about them."""
    samples: dict[Any, _Sample] = {}
    malformed = []   # the index reports what is wrong with them
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict) or FIELDS.wrong(entry) or not entry["sentences"]:
            malformed.append(entry)
            continue
        objects = _objects(entry, targets, f"{path}, ref {entry['ref_id']!r} (entry {position}, from 0)", on_fault)
        for place, sentence in enumerate(entry["sentences"] if objects is not None else ()):
            raw = sentence.get("raw") if isinstance(sentence, dict) else None
            said: Any = (position, place)   # equal to no other
            if isinstance(raw, str):
                made = make_sentence(0, raw)
                said, sentence = made["sent"], {"sent": made["sent"], "tokens": made["tokens"], **sentence}
            sample = samples.setdefault((entry["image_id"], entry["split"], said), _Sample(sentence, entry))
            sample.objects |= objects or {}
            sample.refs += 1
            sample.empty += not objects
    taken: set[Id] = set()
    refs = [_as_ref(sample, targets, taken) for sample in samples.values()]
    return [*refs, *malformed], _notes(list(samples.values()), path)


def _objects(entry: Entry, targets: Targets, where: str, on_fault: OnFault) -> dict[Id, Any] | None:
    """The annotations of a ref with the category that it says, none if it has no target; None after a report."""
    given = entry.get("ann_id")
    if entry.get("no_target") is True or ("ann_id" in entry and given in NOTHING):
        return {}
    ids: list[Any] = given if isinstance(given, list) else [given]
    if not all(isinstance(id_, Id) for id_ in ids) or NO_TARGET["id"] in ids:
        on_fault("malformed entry", f"{where}: its ann_id must be the id of an annotation, or -1 for no target, but is "
                                    f"{given!r}. {WHERE_TO_GET_IT}.")
        return None
    if unknown := [id_ for id_ in ids if id_ not in targets.own]:
        on_fault("unknown annotation", f"{where} points to annotation {unknown[0]!r}, which new_instances.json lacks. "
                                       f"Take both files from the same download: {WHERE_TO_GET_IT}.")
        return None
    category = entry.get("category_id")
    return {id_: category if isinstance(category, Id) else targets.own[id_].get("category_id") for id_ in ids}


def _as_ref(sample: _Sample, targets: Targets, taken: set[Id]) -> Entry:
    """The ref of a sentence. Its id is that of the first ref, with a number if another sentence of that has it."""
    objects, own = sample.objects, sample.first["ref_id"]
    ref_id, again = own, 2
    while ref_id in taken:
        ref_id, again = f"{own}-{again}", again + 1
    taken.add(ref_id)
    return {**sample.first, "ref_id": ref_id, "ann_id": targets.of(list(objects), sample.first["image_id"]),
            "ann_ids": list(objects) or [NO_TARGET["id"]], "no_target": not objects, "sentences": [sample.sentence],
            "sent_ids": [sample.sentence.get("sent_id")] if isinstance(sample.sentence, dict) else [],
            "category_id": next(iter(objects.values()), NO_TARGET["id"])}


def _notes(samples: list[_Sample], path: str) -> list[tuple[str, str]]:
    """What is said of refs that were united."""
    united = [sample for sample in samples if sample.refs > 1]
    if not united:
        return []
    both = sum(0 < sample.empty < sample.refs for sample in united)
    return [("united refs", f"{os.path.basename(path)}: {sum(sample.refs for sample in united):,} refs of equal "
                            f"picture, sentence and split are united into {len(united):,}, of {len(samples):,} in all"
             + (f"; {both:,} of these are also said to mean nothing, which is ignored" if both else ""))]
