"""REFER's own format: a pickled list of refs, and COCO's instances.json."""
import os

from refer.entries import Content, OnFault, read_instances, require
from refer.plain_pickle import load_plain_pickle
from refer.readers.place import Place


def find(place: Place, prefix: str = "") -> list[str]:
    """The refs file, if it exists. `prefix` begins the names of both files."""
    return [path for path in (_paths(place, prefix)[0],) if os.path.isfile(path)]


def read(place: Place, on_fault: OnFault, prefix: str = "") -> Content:
    """Reads both files as they are. Raises UserError if one is missing or damaged."""
    refs_path, instances_path = _paths(place, prefix)
    require(os.path.isfile, refs_path, f"the refs of {place.dataset} split by '{place.split_by}'")
    require(os.path.isfile, instances_path, f"the annotations of {place.dataset}")
    refs, instances = load_plain_pickle(refs_path), read_instances(instances_path)
    return Content(refs, instances["images"], instances["annotations"], instances["categories"], place.image_dir,
                   files=(refs_path, instances_path), refs_path=refs_path, instances_path=instances_path)


def _paths(place: Place, prefix: str) -> tuple[str, str]:
    return (os.path.join(place.folder, f"{prefix}refs({place.split_by}).p"),
            os.path.join(place.folder, f"{prefix}instances.json"))
