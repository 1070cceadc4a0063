"""Annotation files of every format, read into the same refs, annotations and images, with a module for each format.

A module has `find(place)`, the files of its format that exist, and `read(place, on_fault)`, which reads them.
"""
import os

from refer.entries import Content, OnFault, require
from refer.own import Dataset, is_own, what_is_there
from refer.readers import coco, earthreason, grefcoco, jsonl, nwpu_refer, phrases, refer_pickle, ris_lad
from refer.readers.place import Place
from utils import UserError

READERS = {"refer": refer_pickle, "phrases": phrases, "grefcoco": grefcoco, "nwpu_refer": nwpu_refer,
           "ris_lad": ris_lad, "earthreason": earthreason, "jsonl": jsonl, "coco": coco}


def read(dataset: Dataset, split_by: str, on_fault: OnFault) -> tuple[str, Content]:
    """The format of a data set's files, its authors' format if several exist, and their content.

    Raises UserError if a folder or file is missing or damaged as a whole; `on_fault` takes what is wrong with an
    entry, which is then left out.
    """
    place = Place(dataset.data_root, dataset.name, dataset.layout, split_by)
    require(os.path.isdir, dataset.data_root, "the data root (--refer_data_root)")
    if not os.path.isdir(place.folder) and (there := what_is_there(dataset.data_root)):
        raise UserError(f"Missing the annotation folder of {dataset.name}: there is no folder {place.folder}. {there}.")
    require(os.path.isdir, place.folder, f"the annotation folder of {dataset.name}")
    formats = sorted(READERS, key=lambda name: name != dataset.layout.format)   # its authors' format comes first
    chosen = next((name for name in formats if READERS[name].find(place)), dataset.layout.format)
    if not dataset.is_own and is_own(place.folder) and not READERS[chosen].find(place):
        raise UserError(f"{place.folder} holds no files of {dataset.name}. {what_is_there(place.folder)}.")
    return chosen, READERS[chosen].read(place, on_fault)
