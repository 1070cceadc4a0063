"""Annotation files of every format, read into the same refs, annotations and images, with a module for each format.

A module has `find(place)`, the files of its format that exist, and `read(place, on_fault)`, which reads them.
"""
import os

from refer.entries import Content, OnFault, require
from refer.layouts import Layout
from refer.readers import coco, grefcoco, jsonl, phrases, refer_pickle
from refer.readers.place import Place

READERS = {"refer": refer_pickle, "phrases": phrases, "grefcoco": grefcoco, "jsonl": jsonl, "coco": coco}


def read(data_root: str | os.PathLike, dataset: str, layout: Layout, split_by: str,
         on_fault: OnFault) -> tuple[str, Content]:
    """The format of a data set's files, its authors' format if several exist, and their content.

    Raises UserError if a folder or file is missing or damaged as a whole; `on_fault` takes what is wrong with an
    entry, which is then left out.
    """
    place = Place(data_root, dataset, layout, split_by)
    require(os.path.isdir, data_root, "the data root (--refer_data_root)")
    require(os.path.isdir, place.folder, f"the annotation folder of {dataset}")
    formats = sorted(READERS, key=lambda name: name != layout.format)   # its authors' format comes first
    chosen = next((name for name in formats if READERS[name].find(place)), layout.format)
    return chosen, READERS[chosen].read(place, on_fault)
