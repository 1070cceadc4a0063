"""The table of known data sets; `refer.own` finds those and the ones that a dataset.json describes.

It imports neither packages nor other modules of the project, so that `--help` is quick.
"""
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PhraseFiles:
    """The facts of a data set of phrase files: where its pictures lie and what the first word of a line is."""

    mask_folder: str  # below the data set's folder; a mask has its image's name there
    suffix: str = ""  # of both file names, where a line has an id without it
    object_above: int = 0  # a mask's pixel is the object's if its value exceeds this


@dataclass(frozen=True)
class Layout:
    """The facts of one data set: a row of the table, or what its own dataset.json says."""

    image_folder: str  # below DATA_ROOT
    splits: Mapping[str, tuple[str, ...]]  # splitBy: the splits its authors published
    corner_boxes: bool = False  # `bbox` is (x1, y1, x2, y2), not COCO's (x, y, width, height)
    title: str = ""  # as papers write it; '' for the name itself
    format: str = "refer"  # in which its authors published it: a key of `refer.readers.READERS`
    folder: str = ""  # of its annotations, below DATA_ROOT; '' for the name itself
    max_tokens: int = 20  # of a sentence, [CLS] and [SEP] included
    each_sentence: bool = False  # an epoch of training shows every sentence, not every ref with one of its sentences
    phrases: PhraseFiles | None = None  # for phrase files
    categories: str = ""  # a key of `refer.categories.RULES`, where files do not say a ref's category
    category_names: tuple[str, ...] = ()  # by id, as far as a data set's own description lists them
    licence: str = ""  # in the words of that description
    citation: str = ""
    published_refs: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # splitBy: {split: refs}
    published_sentences: Mapping[str, int] = field(default_factory=dict)  # split: sentences


_COCO = "images/mscoco/images/train2014"
_PLAIN = ("train", "val", "test")
_LETTERED = ("train", "val", "testA", "testB")
DATASETS: dict[str, Layout] = {
    "rrsisd": Layout("images/rrsisd/JPEGImages", {"unc": _PLAIN}, corner_boxes=True, title="RRSIS-D",
                     published_refs={"unc": {"train": 12_181, "val": 1_740, "test": 3_481}}),
    "refcoco": Layout(_COCO, {"unc": _LETTERED, "google": _PLAIN}, title="RefCOCO",
                      published_refs={"unc": {"train": 42_404, "val": 3_811, "testA": 1_975, "testB": 1_810}}),
    "refcoco+": Layout(_COCO, {"unc": _LETTERED}, title="RefCOCO+",
                       published_refs={"unc": {"train": 42_278, "val": 3_805, "testA": 1_975, "testB": 1_798}}),
    "refcocog": Layout(_COCO, {"google": ("train", "val"), "umd": _PLAIN}, title="RefCOCOg",
                       published_refs={"umd": {"train": 42_226, "val": 2_573, "test": 5_023}}),
    "refclef": Layout("images/saiapr_tc-12", {"unc": (*_LETTERED, "testC"), "berkeley": _PLAIN}, title="RefCLEF"),
    "grefcoco": Layout(_COCO, {"unc": _LETTERED}, title="gRefCOCO", format="grefcoco", each_sentence=True),
    "refsegrs": Layout("refsegrs/images", {"own": _PLAIN}, title="RefSegRS", format="phrases", each_sentence=True,
                       phrases=PhraseFiles("masks", ".tif", 50), categories="refsegrs",
                       published_sentences={"train": 2_172, "val": 431, "test": 1_817}),
    "risbench": Layout("risbench/img_rgb", {"own": _PLAIN}, title="RISBench", format="phrases", each_sentence=True,
                       max_tokens=50, phrases=PhraseFiles("mask"), categories="risbench",
                       published_sentences={"train": 26_300, "val": 10_013, "test": 16_159}),
    "uavid_ris": Layout("images/uavid_ris/PNGImages", {"uow": _PLAIN}, title="UAVid-RIS"),
    "vdd_ris": Layout("images/vdd_ris/PNGImages", {"uow": _PLAIN}, title="VDD-RIS"),
    "remotesam-270k": Layout("RemoteSAM-270K/JPEGImages", {"unc": _PLAIN}, title="RemoteSAM-270K",
                             folder="RemoteSAM-270K"),
    "rrsishr": Layout("images/rrsishr/JPEGImages", {"unc": _PLAIN}, title="RRSIS-HR",
                      published_refs={"unc": {"train": 2_118, "val": 268, "test": 264}}),
    "nwpu_refer": Layout("nwpu_refer/image", {"unc": _PLAIN}, title="NWPU-Refer", format="nwpu_refer",
                         each_sentence=True),
    "ris_lad": Layout("ris_lad/images", {"own": _PLAIN}, title="RIS-LAD", format="ris_lad", each_sentence=True),
    # Its own files have a folder of images for each split; the one here is that of a converted data set.
    "earthreason": Layout("images/earthreason", {"own": _PLAIN}, title="EarthReason", format="earthreason",
                          max_tokens=50, published_refs={"own": {"train": 2_371, "val": 1_135, "test": 1_928}}),
}
DEFAULT_SPLIT_BY = "unc"

