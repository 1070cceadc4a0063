"""The annotations that refs to any number of objects point to: one for each union of objects, one for no target."""
from typing import Any

from refer.entries import Entry, Id

NO_TARGET = {"id": -1, "name": "no target"}


class Targets:
    """The annotations of a file, by id in `own`, and those that are made for unions of them."""

    def __init__(self, annotations: list[Any]):
        self.own = {entry["id"]: entry for entry in annotations if isinstance(entry, dict) and "id" in entry
                    and isinstance(entry["id"], Id)}
        self.others = [entry for entry in annotations if not isinstance(entry, dict) or
                       not isinstance(entry.get("id"), Id)]
        self.made: dict[Id, Entry] = {}

    def of(self, ids: list[Id], image_id: Id) -> Id:
        """The id of an annotation that holds the union of these, none of them a crowd; if none does, it is made."""
        named = [self.own[id_] for id_ in ids]
        if len(named) == 1 and not named[0].get("iscrowd") and _usable(named[0]) == named[0].get("segmentation"):
            return ids[0]
        made_id = "+".join(map(str, ids)) if ids else f"no target in {image_id}"
        if made_id not in self.made:
            parts = [part for entry in named if not entry.get("iscrowd") for part in _usable(entry)]
            self.made[made_id] = {"id": made_id, "image_id": image_id, "segmentation": parts,
                                  "category_id": named[0].get("category_id") if named else NO_TARGET["id"]}
        return made_id

    def annotations(self) -> list[Any]:
        """All annotations, those of the file first."""
        return [*self.own.values(), *self.others, *self.made.values()]


def _usable(annotation: Entry) -> list[Any]:
    """An annotation's parts without polygons of fewer than three points or of an odd length."""
    segmentation = annotation.get("segmentation")
    parts = segmentation if isinstance(segmentation, list) else [segmentation]
    return [part for part in parts if not isinstance(part, list) or (len(part) >= 6 and len(part) % 2 == 0)]
