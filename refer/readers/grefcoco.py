"""gRefCOCO's format: a JSON list of refs to any number of annotations, none among them, and COCO's instances.json.

Its refs become refs to one annotation each, which has all their parts: the union of several, nothing for no target.
Their own lists stay in `ann_ids` and `category_ids`.
"""
import os

from refer.entries import WHERE_TO_GET_IT, Content, Entry, Id, OnFault, read_instances, read_json, require
from refer.plain_pickle import load_plain_pickle
from refer.readers.place import Place
from refer.readers.targets import NO_TARGET, Targets


def find(place: Place) -> list[str]:
    """The refs file, if it exists: the present JSON, or the older pickle."""
    return [path for path in _paths(place)[:2] if os.path.isfile(path)]


def read(place: Place, on_fault: OnFault) -> Content:
    """Reads both files. Raises UserError if one is missing or damaged."""
    newer, older, instances_path = _paths(place)
    refs_path = older if not os.path.isfile(newer) and os.path.isfile(older) else newer
    require(os.path.isfile, refs_path, f"the refs of {place.dataset} split by '{place.split_by}'")
    require(os.path.isfile, instances_path, f"the annotations of {place.dataset}")
    entries = load_plain_pickle(refs_path) if refs_path == older else read_json(refs_path)
    instances = read_instances(instances_path)
    targets = Targets(instances["annotations"])
    refs, silent = [], 0
    for position, entry in enumerate(entries if isinstance(entries, list) else []):
        if isinstance(entry, dict) and entry.get("sentences") == []:
            silent += 1
        elif isinstance(entry, dict) and "ann_id" in entry and "image_id" in entry:
            where = f"{refs_path}, ref {entry.get('ref_id')!r} (entry {position}, from 0)"
            if ref := _as_ref(entry, targets, where, on_fault):
                refs.append(ref)
        else:
            refs.append(entry)   # the index reports what is wrong with it
    notes = [("ref without sentences", f"{refs_path}: {silent} refs without a sentence are left out")] if silent else []
    return Content(refs if isinstance(entries, list) else entries, instances["images"], targets.annotations(),
                   [*instances["categories"], NO_TARGET], place.image_dir, (refs_path, instances_path), refs_path,
                   instances_path, notes=notes)


def _paths(place: Place) -> tuple[str, str, str]:
    stem = os.path.join(place.folder, f"grefs({place.split_by})")
    return f"{stem}.json", f"{stem}.p", os.path.join(place.folder, "instances.json")


def _as_ref(entry: Entry, targets: Targets, where: str, on_fault: OnFault) -> Entry | None:
    """The ref with one annotation; None after reporting one that has none."""
    ids, categories = (value if isinstance(value, list) else [value]
                       for value in (entry["ann_id"], entry.get("category_id", NO_TARGET["id"])))
    no_target = ids == [NO_TARGET["id"]]
    if not ids or not all(isinstance(id_, Id) for id_ in ids) or (NO_TARGET["id"] in ids and not no_target):
        on_fault("malformed entry", f"{where}: its ann_id must be ids of annotations, or [-1] alone for no target, but "
                                    f"is {ids}. {WHERE_TO_GET_IT}.")
        return None
    if unknown := [id_ for id_ in ids if not no_target and id_ not in targets.own]:
        on_fault("unknown annotation", f"{where} points to annotation {unknown[0]!r}, which instances.json lacks. Take "
                                       f"both files from the same download: {WHERE_TO_GET_IT}.")
        return None
    return {**entry, "ann_id": targets.of([] if no_target else ids, entry["image_id"]), "ann_ids": ids,
            "category_id": NO_TARGET["id"] if no_target else categories[0] if categories else None,
            "category_ids": categories, "no_target": no_target}
