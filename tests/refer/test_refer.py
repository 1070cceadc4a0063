"""The index and its filters, masks of every kind, and boxes; bad input is refused."""

import copyreg
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from refer import REFER
from refer.layouts import DATASETS
from refer.masks import decode_segmentation
from refer.plain_pickle import load_plain_pickle
from utils import UserError

HEIGHT, WIDTH = 6, 8


# Builders of small data sets


def make_ref(ref_id, split="train", ann_id=None, image_id=1, category_id=0, sentences=1):
    sentence_ids = [100 * ref_id + number for number in range(sentences)]
    return {
        "ref_id": ref_id,
        "ann_id": 10 * ref_id if ann_id is None else ann_id,
        "image_id": image_id,
        "category_id": category_id,
        "file_name": f"COCO_train2014_{image_id}_{ref_id}.jpg",
        "split": split,
        "sent_ids": sentence_ids,
        "sentences": [
            {"sent_id": sentence_id, "raw": "The Ship", "sent": "the ship", "tokens": ["the", "ship"]}
            for sentence_id in sentence_ids
        ],
    }


def make_annotation(ann_id, image_id=1, category_id=0, segmentation=(), category_key="category_id"):
    return {
        "id": ann_id,
        "image_id": image_id,
        category_key: category_id,
        "segmentation": list(segmentation) if isinstance(segmentation, tuple) else segmentation,
        "bbox": [1, 2, 5, 4],
        "area": 12345,
    }


def make_image(image_id, **fields):
    return {"id": image_id, "file_name": f"{image_id:05d}.jpg", "height": HEIGHT, "width": WIDTH, **fields}


def write_dataset(
    root, refs, annotations=None, images=None, dataset="rrsisd", split_by="unc", protocol=2, categories=None
):
    """Writes a data set; annotations and images default to those the refs ask for."""
    folder = root / dataset
    folder.mkdir(parents=True, exist_ok=True)
    if annotations is None:
        annotations = [make_annotation(ref["ann_id"], ref["image_id"], ref["category_id"]) for ref in refs]
    if images is None:
        images = [make_image(image_id) for image_id in sorted({ref["image_id"] for ref in refs})]
    if categories is None:
        categories = [{"id": number, "name": f"category {number}"} for number in range(3)]
    instances = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"refs({split_by}).p").write_bytes(pickle.dumps(refs, protocol))
    (folder / "instances.json").write_text(json.dumps(instances))
    return root


def index_of_one(root, segmentation, **image_fields):
    """A data set of one ref with this segmentation."""
    write_dataset(
        root,
        [make_ref(7, ann_id=12)],
        annotations=[make_annotation(12, segmentation=segmentation)],
        images=[make_image(1, **image_fields)],
    )
    return REFER(root, "rrsisd")


@pytest.fixture
def small(tmp_path):
    """Four refs on three images; image 3 has annotations but no ref, category 2 nothing at all."""
    refs = [
        make_ref(0, "train", image_id=1, category_id=0, sentences=2),
        make_ref(1, "train", image_id=1, category_id=1),
        make_ref(2, "val", image_id=2, category_id=0),
        make_ref(3, "test", image_id=2, category_id=1),
    ]
    annotations = [
        make_annotation(0, 1, 0),
        make_annotation(10, 1, 1),
        make_annotation(20, 2, 0),
        make_annotation(30, 2, 1),
        make_annotation(99, 3, 1),
    ]
    write_dataset(tmp_path, refs, annotations, [make_image(number) for number in (1, 2, 3)])
    return REFER(tmp_path, "rrsisd", "unc")


# The index


def test_filters_of_refs(small):
    assert small.getRefIds() == [0, 1, 2, 3]
    assert small.getRefIds(image_ids=[2]) == [2, 3]
    assert small.getRefIds(cat_ids=1) == [1, 3]
    assert small.getRefIds(ref_ids=[3, 0]) == [0, 3], "ids come in the file's order"
    assert small.getRefIds(split="train") == [0, 1]
    assert small.getRefIds(image_ids=[1, 2], cat_ids=[0], split="val") == [2]
    assert small.getRefIds(image_ids=[1], split="val") == [], "no match is no error: both values exist"
    assert small.getRefIds(image_ids=3) == []


def test_filters_of_annotations_images_and_categories(small):
    assert small.getAnnIds() == [0, 10, 20, 30, 99]
    assert small.getAnnIds(image_ids=3) == [99], "annotations without a ref count too"
    assert small.getAnnIds(cat_ids=[1]) == [10, 30, 99]
    assert small.getAnnIds(ref_ids=[2]) == [20]
    assert small.getAnnIds(image_ids=[1, 2], cat_ids=0) == [0, 20]
    assert small.getImgIds() == [1, 2, 3]
    assert small.getImgIds(ref_ids=[3, 2, 0]) == [2, 1], "each image once"
    assert small.getCatIds() == [0, 1, 2]


def test_id_zero_is_an_id_and_not_an_absent_filter(small):
    assert small.getRefIds(cat_ids=0) == [0, 2]
    assert small.getRefIds(ref_ids=0) == [0]
    assert small.loadRefs(0)[0]["ref_id"] == 0


def test_loading_takes_one_id_or_several_in_order(small):
    assert [ref["ref_id"] for ref in small.loadRefs([2, 0])] == [2, 0]
    assert [ref["ref_id"] for ref in small.loadRefs(np.array([3]))] == [3]
    assert small.loadRefs() == []
    assert small.loadAnns(99)[0]["image_id"] == 3
    assert small.loadImgs((1, 2))[1]["file_name"] == "00002.jpg"
    assert small.loadCats([1, 0]) == ["category 1", "category 0"]


def test_attributes(small, tmp_path):
    assert Path(small.ROOT_DIR).name == "refer"
    assert str(tmp_path / "rrsisd") == small.DATA_DIR
    assert str(tmp_path / "images/rrsisd/JPEGImages") == small.IMAGE_DIR
    assert set(small.data) == {"dataset", "refs", "images", "annotations", "categories"}
    assert set(small.Refs) == {0, 1, 2, 3} and set(small.Anns) == {0, 10, 20, 30, 99}
    assert small.Imgs[2]["file_name"] == "00002.jpg"
    assert small.Cats == {0: "category 0", 1: "category 1", 2: "category 2"}
    assert [ref["ref_id"] for ref in small.imgToRefs[2]] == [2, 3] and 3 not in small.imgToRefs
    assert [annotation["id"] for annotation in small.imgToAnns[3]] == [99]
    assert small.refToAnn[3]["id"] == 30 and small.annToRef[30]["ref_id"] == 3
    assert [ref["ref_id"] for ref in small.catToRefs[1]] == [1, 3]
    assert set(small.Sents) == {0, 1, 100, 200, 300}
    assert small.sentToRef[1]["ref_id"] == 0 and small.sentToTokens[1] == ["the", "ship"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_refs_of_any_pickle_protocol(tmp_path, protocol):
    write_dataset(tmp_path, [make_ref(5)], protocol=protocol)
    assert REFER(tmp_path, "rrsisd").getRefIds() == [5]


def test_category_of_rrsisd_is_spelt_differently(tmp_path):
    annotations = [make_annotation(n, category_id=n, category_key="categories_id") for n in (0, 1)]
    refs = [make_ref(n, ann_id=n, category_id=n) for n in (0, 1)]
    index = REFER(write_dataset(tmp_path, refs, annotations), "rrsisd")
    assert index.getAnnIds(cat_ids=0) == [0]


@pytest.mark.parametrize(
    ("dataset", "split_by", "folder"),
    [
        ("rrsisd", "unc", "rrsisd/JPEGImages"),
        ("refcoco", "google", "mscoco/images/train2014"),
        ("refcoco+", "unc", "mscoco/images/train2014"),
        ("refcocog", "umd", "mscoco/images/train2014"),
        ("refclef", "berkeley", "saiapr_tc-12"),
    ],
)
def test_image_path_uses_the_name_of_the_image_entry(tmp_path, dataset, split_by, folder):
    write_dataset(tmp_path, [make_ref(3)], dataset=dataset, split_by=split_by)
    index = REFER(tmp_path, dataset, split_by)
    expected = str(tmp_path / "images" / folder / "00001.jpg")
    assert index.image_path(3) == index.image_path(index.loadRefs(3)[0]) == expected


def test_ids_may_be_strings_as_in_refclef(tmp_path):
    write_dataset(tmp_path, [make_ref(1, ann_id="1_2")], dataset="refclef")
    index = REFER(tmp_path, "refclef")
    assert index.loadAnns("1_2")[0]["id"] == "1_2" and index.getRefIds(ref_ids=1) == [1]


# Splits


@pytest.fixture
def lettered(tmp_path):
    names = ["train", "val", "test", "testA", "testB", "testC", "testAB", "testBC"]
    refs = [make_ref(number, split) for number, split in enumerate(names)]
    return REFER(write_dataset(tmp_path, refs, dataset="refclef"), "refclef")


@pytest.mark.parametrize(
    ("split", "ref_ids"),
    [
        ("train", [0]),
        ("val", [1]),
        ("test", [2, 3, 4, 5, 6, 7]),
        ("testA", [3, 6]),
        ("testB", [4, 6, 7]),
        ("testC", [5, 7]),
        ("testAB", [6]),
        ("testBC", [7]),
    ],
)
def test_splits(lettered, split, ref_ids):
    assert lettered.getRefIds(split=split) == ref_ids


def test_test_of_refcoco_is_both_lettered_splits(tmp_path):
    refs = [make_ref(n, split) for n, split in enumerate(["train", "testA", "testB"])]
    index = REFER(write_dataset(tmp_path, refs, dataset="refcoco"))
    assert index.getRefIds(split="test") == [1, 2]
    assert index.split_counts() == {"train": 1, "testA": 1, "testB": 1}


@pytest.mark.parametrize("split", ["testA", "testing", "Train", "tra"])
def test_unknown_split_lists_those_there_are(small, split):
    with pytest.raises(UserError) as caught:
        small.getRefIds(split=split)
    assert f"The split '{split}' of rrsisd (split by unc) is unknown" in str(caught.value)
    assert "train (2 refs), val (1 refs), test (1 refs). test.py takes one of these as --split" in str(caught.value)


def test_published_split_without_refs_is_empty(tmp_path):
    index = REFER(write_dataset(tmp_path, [make_ref(0, "train")]), "rrsisd")
    with pytest.raises(UserError) as caught:
        index.getRefIds(split="val")
    assert "The split 'val' of rrsisd (split by unc) is empty" in str(caught.value)
    assert "has train (1 refs)" in str(caught.value) and "refer/data/README.md" in str(caught.value)


# Masks: all of 6 rows and 8 columns unless said otherwise. RLEs run down the columns, zeros first.

RECTANGLE = [1, 1, 4, 1, 4, 3, 1, 3]  # columns 1 to 3, rows 1 and 2


def box_mask(top, bottom, left, right, shape=(HEIGHT, WIDTH)):
    mask = np.zeros(shape, np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def check_mask(found, expected):
    assert found["mask"].dtype == np.uint8 and found["mask"].shape == expected.shape
    np.testing.assert_array_equal(found["mask"], expected)
    assert found["area"] == expected.sum() and type(found["area"]) is int


def test_one_polygon(tmp_path):
    check_mask(index_of_one(tmp_path, [RECTANGLE]).getMask(7), box_mask(1, 3, 1, 4))


def test_separate_polygons_add_up(tmp_path):
    expected = box_mask(1, 3, 1, 4) + box_mask(4, 6, 6, 8)
    assert expected.sum() == 6 + 4
    check_mask(index_of_one(tmp_path, [RECTANGLE, [6, 4, 8, 4, 8, 6, 6, 6]]).getMask(7), expected)


def test_overlapping_polygons_are_united_and_keep_the_overlap(tmp_path):
    overlapping = [2, 2, 6, 2, 6, 5, 2, 5]  # 4 x 3, shares columns 2, 3 of row 2 with RECTANGLE
    found = index_of_one(tmp_path, [RECTANGLE, overlapping]).getMask(7)
    check_mask(found, box_mask(1, 3, 1, 4) | box_mask(2, 5, 2, 6))
    assert found["area"] == 6 + 12 - 2
    assert found["mask"][2, 2] == found["mask"][2, 3] == 1


def test_the_published_way_loses_the_overlap():
    overlapping = [2, 2, 6, 2, 6, 5, 2, 5]
    mask = decode_segmentation([RECTANGLE, overlapping], HEIGHT, WIDTH, drop_overlaps=True)
    np.testing.assert_array_equal(mask, box_mask(1, 3, 1, 4) ^ box_mask(2, 5, 2, 6))
    alone = decode_segmentation([RECTANGLE], HEIGHT, WIDTH, drop_overlaps=True)
    np.testing.assert_array_equal(alone, box_mask(1, 3, 1, 4))


def test_polygon_outside_the_image_is_cut_at_its_border(tmp_path):
    check_mask(index_of_one(tmp_path, [[6, -5, 20, -5, 20, 3, 6, 3]]).getMask(7), box_mask(0, 3, 6, 8))


def test_polygon_of_two_points_covers_nothing(tmp_path):
    check_mask(index_of_one(tmp_path, [[1, 1, 4, 3], RECTANGLE]).getMask(7), box_mask(1, 3, 1, 4))


# 4 rows, 3 columns; the ones are rows 1, 2 of column 0 and row 0 of column 1. The runs are 1, 2, 1, 1, 7, the
# compressed form of which is 1, 2, 1, 1 - 2 = -1 (five ones: 31 + 48 is "O"), 7 - 1 = 6.
RUNS, COMPRESSED = [1, 2, 1, 1, 7], "121O6"
RLE_MASK = np.array([[0, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]], np.uint8)


@pytest.mark.parametrize("in_list", [False, True])
@pytest.mark.parametrize("counts", [RUNS, COMPRESSED])
def test_rle_of_every_kind_keeps_its_own_size(tmp_path, counts, in_list):
    rle = {"size": [4, 3], "counts": counts}
    check_mask(index_of_one(tmp_path, [rle] if in_list else rle).getMask(7), RLE_MASK)


@pytest.mark.parametrize("counts", [RUNS, COMPRESSED, COMPRESSED.encode()])
def test_rle_counts_as_list_string_or_bytes(counts):
    rle = {"size": [4, 3], "counts": counts}
    np.testing.assert_array_equal(decode_segmentation(rle, None, None), RLE_MASK)


@pytest.mark.parametrize("second", [[0, 4, 8], "048"])
def test_several_rles_are_united(tmp_path, second):
    parts = [{"size": [4, 3], "counts": RUNS}, {"size": [4, 3], "counts": second}]  # the second: column 0
    expected = RLE_MASK.copy()
    expected[:, 0] = 1
    check_mask(index_of_one(tmp_path, parts).getMask(7), expected)


def test_rle_and_polygon_are_united(tmp_path):
    rle = {"size": [HEIGHT, WIDTH], "counts": [0, 6, 42]}  # column 0
    check_mask(
        index_of_one(tmp_path, [rle, RECTANGLE]).getMask(7), box_mask(0, 6, 0, 1) | box_mask(1, 3, 1, 4)
    )


def test_compressed_counts_agree_with_pycocotools_on_random_masks():
    random = np.random.default_rng(0)
    for _ in range(50):
        coarse = random.random(random.integers(1, 12, 2)) < random.random()
        mask = np.asfortranarray(np.kron(coarse, np.ones(random.integers(1, 30, 2)))).astype(np.uint8)
        np.testing.assert_array_equal(decode_segmentation(coco_mask.encode(mask), None, None), mask)


@pytest.mark.parametrize(
    ("segmentation", "shape"),
    [
        ([], (HEIGHT, WIDTH)),
        (None, (HEIGHT, WIDTH)),
        ([[]], (HEIGHT, WIDTH)),
        ({"size": [4, 5], "counts": "d0"}, (4, 5)),  # one run of 20 zeros: 20 + 32 + 48 is "d", then 0
        ({"size": [4, 5], "counts": ""}, (4, 5)),
        ({"size": [4, 5], "counts": []}, (4, 5)),
    ],
)
def test_empty_segmentation_is_an_empty_mask(tmp_path, segmentation, shape):
    check_mask(index_of_one(tmp_path, segmentation).getMask(7), np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[1, 1, 4, 1, 4, 3, 1]], "part 1 is a polygon of 7 numbers: they come in pairs x, y"),
        ([RECTANGLE, [1, 1, 4, 1, "4", 3]], "part 2 is a polygon with something that is no coordinate"),
        ([[1, 1, 4, 1, float("nan"), 3]], "something that is no coordinate"),
        ([[1, 1, 4, 1, 1e12, 3]], "something that is no coordinate"),
        ([[1, 1, 4, 1, 10**400, 3]], "something that is no coordinate"),
        (RECTANGLE, "part 1 must be a polygon or an RLE, but is 1"),
        ("121O6", "it must be a list of polygons or RLEs, or one RLE, but is '121O6'"),
        ({"size": [4, 3], "counts": [1, 2]}, "cover 3 pixels, but its size 4x3 has 12"),
        ({"size": [4, 3], "counts": [1, 2, 10]}, "cover 13 pixels, but its size 4x3 has 12"),
        ({"size": [4, 3], "counts": "12"}, "cover 3 pixels, but its size 4x3 has 12"),
        ({"size": [4, 3], "counts": [20, -8]}, "is not the length of a run"),
        ({"size": [4, 3], "counts": [1.5, 10.5]}, "is not the length of a run"),
        ({"size": [4, 3], "counts": "121é6"}, "a character that compressed counts do not use"),
        ({"size": [4, 3], "counts": "121o"}, "are cut off"),
        ({"size": [4, 3], "counts": "oooooooooo0"}, "a number larger than any mask"),
        ({"size": [4, 3]}, "must be a list or a string, but are None"),
        ({"counts": [12]}, "the size of an RLE must be [height, width], but is None"),
        ({"size": [4, -3], "counts": [12]}, "must be a height and a width in pixels, but is 4 and -3"),
        ({"size": [10**9, 10**9], "counts": [10**18]}, "must be a height and a width in pixels"),
        ([{"size": [4, 3], "counts": [12]}, RECTANGLE], "different sizes (H, W) [(4, 3), (6, 8)]"),
    ],
)
def test_malformed_segmentation_names_data_set_ref_and_annotation(tmp_path, segmentation, reason):
    index = index_of_one(tmp_path, segmentation)  # the index itself does not decode masks
    with pytest.raises(UserError) as caught:
        index.getMask(7)
    message = str(caught.value)
    assert message.startswith("rrsisd, ref 7, annotation 12: its segmentation is malformed: ")
    assert reason in message
    assert f"Repair it in {tmp_path / 'rrsisd' / 'instances.json'}" in message


def test_polygon_needs_the_size_of_its_image(tmp_path):
    index = index_of_one(tmp_path, [RECTANGLE], height=None)
    with pytest.raises(UserError, match="its size must be a height and a width in pixels, but is None and 8"):
        index.getMask(7)


# Boxes: every annotation made here has the bbox [1, 2, 5, 4]


def test_box_is_converted_from_corners_for_rrsisd_only(tmp_path):
    for dataset, expected in (("rrsisd", [1, 2, 4, 2]), ("refcoco", [1, 2, 5, 4])):
        index = REFER(write_dataset(tmp_path, [make_ref(3)], dataset=dataset), dataset)
        assert index.getRefBox(3) == index.getRefBox(index.loadRefs(3)[0]) == expected


@pytest.mark.parametrize("box", [None, [1, 2, 3], [1, 2, 3, "4"], [1, 2, 3, float("inf")]])
def test_malformed_box(tmp_path, box):
    annotation = {**make_annotation(12), "bbox": box}
    index = REFER(write_dataset(tmp_path, [make_ref(7, ann_id=12)], [annotation]), "rrsisd")
    with pytest.raises(UserError, match="rrsisd, ref 7, annotation 12: its bbox must be four numbers"):
        index.getRefBox(7)


# Mistakes in what is asked for, and missing or damaged files


def test_unknown_data_set_and_wrong_split_by():
    with pytest.raises(UserError, match="Unknown data set 'coco': choose --dataset from rrsisd, refcoco, "):
        REFER(".", "coco")
    with pytest.raises(UserError, match="refcocog is not split by 'unc': choose --splitBy from google, umd"):
        REFER(".", "refcocog")
    assert list(DATASETS) == ["rrsisd", "refcoco", "refcoco+", "refcocog", "refclef", "grefcoco", "refsegrs",
                              "risbench", "uavid_ris", "vdd_ris", "remotesam-270k", "rrsishr", "nwpu_refer",
                              "ris_lad", "earthreason"]


@pytest.mark.parametrize(
    ("missing", "what"),
    [
        ("", "Missing the data root (--refer_data_root): there is no folder"),
        ("rrsisd", "Missing the annotation folder of rrsisd: there is no folder"),
        ("rrsisd/refs(unc).p", "Missing the refs of rrsisd split by 'unc': there is no file"),
        ("rrsisd/instances.json", "Missing the annotations of rrsisd: there is no file"),
    ],
)
def test_missing_folder_or_file_is_named(tmp_path, missing, what):
    root = write_dataset(tmp_path / "data", [make_ref(1)])
    (root / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(UserError) as caught:
        REFER(root, "rrsisd")
    assert f"{what} {root / missing}. refer/data/README.md says" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b'{"images": [', b"\xff\xfe", b"[" * 100_000])
def test_invalid_json(tmp_path, content):
    path = write_dataset(tmp_path, [make_ref(1)]) / "rrsisd" / "instances.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        REFER(tmp_path, "rrsisd")
    assert str(caught.value).startswith(f"{path} is not valid JSON (") and "truncated" in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "{}", '{"images": [], "annotations": {}, "categories": []}'])
def test_json_of_another_shape(tmp_path, content):
    (write_dataset(tmp_path, [make_ref(1)]) / "rrsisd" / "instances.json").write_text(content)
    with pytest.raises(UserError, match="with the lists images, annotations, categories"):
        REFER(tmp_path, "rrsisd")


def without(entry, field):
    return {name: value for name, value in entry.items() if name != field}


@pytest.mark.parametrize(
    ("refs", "reason"),
    [
        ({"refs": []}, "must hold a list of ref entries, but holds {'refs': []}"),
        ([], "holds no refs"),
        ([make_ref(0), "x"], "ref entry 1 (from 0) must be a dict with ref_id, ann_id, image_id, "),
        ([without(make_ref(0), "split")], "'split' of ref entry 0 (from 0) must be a text, but is missing"),
        (
            [{**make_ref(0), "image_id": [1]}],
            "'image_id' of ref entry 0 (from 0) must be a whole number, of 64 bits or a text",
        ),
        ([{**make_ref(0), "ref_id": 10**5000}], "'ref_id' of ref entry 0 (from 0) must be a whole number, of 64 bits"),
        (
            [{**make_ref(3), "sentences": [{"sent_id": 1, "tokens": [], "raw": "ship \ud800"}]}],
            "'raw' of sentence entry 0 (from 0) must be a text, but is 'ship \\ud800'",
        ),
        ([{**make_ref(3), "sentences": []}], "ref 3 has no sentence"),
        ([{**make_ref(3), "sentences": [{"sent_id": 1, "tokens": []}]}], "ref 3: 'raw' of sentence entry 0"),
        ([make_ref(4), make_ref(4)], "two ref entries have the ref_id 4 (the second is entry 1, from 0)"),
    ],
)
def test_refs_of_another_shape(tmp_path, refs, reason):
    write_dataset(tmp_path, refs, [make_annotation(n) for n in (0, 30, 40)], [make_image(1)])
    with pytest.raises(UserError) as caught:
        REFER(tmp_path, "rrsisd")
    assert reason in str(caught.value) and str(tmp_path / "rrsisd" / "refs(unc).p") in str(caught.value)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b.jpg", "..\\b.jpg", "a\0.jpg", ""])
def test_the_name_of_an_image_leads_nowhere_else(tmp_path, name):
    write_dataset(tmp_path, [make_ref(0)], [make_annotation(0)], [{**make_image(1), "file_name": name}])
    with pytest.raises(UserError, match=r"'file_name' of image entry 0 .* a path inside the folder of images"):
        REFER(tmp_path, "rrsisd")


def test_ref_to_an_unknown_annotation_or_image_names_the_first_and_counts(tmp_path):
    refs = [make_ref(0), make_ref(1), make_ref(2, image_id=5), make_ref(3, image_id=6)]
    write_dataset(tmp_path, refs, [make_annotation(0)])
    with pytest.raises(UserError) as caught:
        REFER(tmp_path, "rrsisd")
    assert "ref 1 points to annotation 10, which" in str(caught.value)
    assert "lacks (so for 3 of 4 refs)" in str(caught.value)

    write_dataset(tmp_path, refs, images=[make_image(1)])
    with pytest.raises(UserError) as caught:
        REFER(tmp_path, "rrsisd")
    assert "ref 2 points to image 5, which" in str(caught.value)
    assert "lacks (so for 2 of 4 refs)" in str(caught.value)


def test_one_id_for_two_annotations(tmp_path):
    same = [make_annotation(10), make_annotation(10)]
    assert REFER(write_dataset(tmp_path, [make_ref(1)], same), "rrsisd").getAnnIds() == [10]
    different = [make_annotation(10), make_annotation(10, segmentation=[RECTANGLE])]
    write_dataset(tmp_path, [make_ref(1)], different)
    with pytest.raises(UserError, match="two annotation entries have the id 10"):
        REFER(tmp_path, "rrsisd")


@pytest.mark.parametrize(
    ("method", "what"),
    [("loadRefs", "ref"), ("loadAnns", "annotation"), ("loadImgs", "image"), ("loadCats", "category"),
     ("getRefIds", "image"), ("getAnnIds", "image"), ("getImgIds", "ref"),
     ("getMask", "ref"), ("getRefBox", "ref"), ("image_path", "ref")],
)  # fmt: skip
def test_unknown_id(small, method, what):
    with pytest.raises(UserError, match=rf"rrsisd \(unc\) has no {what} with id 4711"):
        getattr(small, method)(4711)


# Pickles


class Attack:
    """Writes a canary file when it is unpickled the ordinary way."""

    def __init__(self, function, argument):
        self.function, self.argument = function, argument

    def __reduce__(self):
        return self.function, (self.argument,)


class Harmless:
    pass


def refuse(path, content, *parts):
    """The file is refused with a message that names it, says that nothing was run, and has these parts."""
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_plain_pickle(path)
    for part in (str(path), "in it was run", "refer/data/README.md", *parts):
        assert part in str(caught.value)


@pytest.fixture
def canary(tmp_path):
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "the pickle ran a command"


def shell(canary):
    return f"touch '{canary}'"


def test_the_attacks_below_are_real(tmp_path):
    pickle.loads(pickle.dumps(Attack(os.system, shell(tmp_path / "touched"))))
    assert (tmp_path / "touched").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_in_a_pickle_is_refused(tmp_path, canary, protocol):
    path = tmp_path / "refs(unc).p"
    attack = Attack(os.system, shell(canary))
    refuse(path, pickle.dumps(attack, protocol), f"{os.system.__module__}.system", "plain data only")
    refuse(path, pickle.dumps([make_ref(1), {"raw": (attack,)}], protocol), f"{os.system.__module__}.system")
    attack = Attack(eval, f"__import__('os').system({shell(canary)!r})")
    refuse(path, pickle.dumps(attack, protocol), ".eval")
    refuse(path, pickle.dumps(Harmless(), protocol), "plain data only")
    refuse(path, pickle.dumps(Harmless, protocol), "Harmless")


def test_every_opcode_that_imports_is_refused(tmp_path, canary):
    path, command = tmp_path / "refs(unc).p", shell(canary).encode()
    argument = b"V" + command + b"\n"
    refuse(path, b"cos\nsystem\n(" + argument + b"tR.", "'os.system'")  # GLOBAL, REDUCE
    refuse(path, b"(" + argument + b"ios\nsystem\n.", "'os.system'")  # INST
    refuse(path, b"(cos\nsystem\n" + argument + b"o.", "'os.system'")  # OBJ
    refuse(
        path, b"\x80\x04\x8c\x02os\x8c\x06system\x93" + argument + b"\x85R.", "'os.system'"
    )  # STACK_GLOBAL
    refuse(path, b"c__builtin__\neval\n(Vopen\ntR.", "'__builtin__.eval'")  # Python 2's name


def test_calling_without_importing_is_refused(tmp_path):
    path = tmp_path / "refs(unc).p"
    for content in (b"Vos\n(tR.", b"Vos\n)\x81.", b"(Vos\no.", b"}}b(lb."):  # REDUCE, NEWOBJ, OBJ, BUILD
        refuse(path, content)


def test_persistent_ids_are_refused(tmp_path):
    path = tmp_path / "refs(unc).p"
    refuse(path, b"Pweights\n.", "outside object ('weights')")
    refuse(path, b"\x80\x02X\x07\x00\x00\x00weightsQ.", "outside object ('weights')")


@pytest.mark.parametrize(
    "opcode", [b"\x82\xf5", b"\x83\xf5\x00", b"\x84\xf5\x00\x00\x00"], ids=["EXT1", "EXT2", "EXT4"]
)
def test_extension_codes_are_refused(tmp_path, canary, opcode):
    path = tmp_path / "refs(unc).p"
    content = b"\x80\x02" + opcode + b"(V" + shell(canary).encode() + b"\ntR."
    refuse(path, content, "unregistered extension code 245")

    copyreg.add_extension("os", "system", 0xF5)
    try:
        refuse(path, content, "'os.system'")
        # Once an ordinary unpickler has met the code, the function lies in a cache that asks nobody.
        assert pickle.loads(b"\x80\x02" + opcode + b".") is os.system
        refuse(path, content, "'os.system'")
    finally:
        copyreg.remove_extension("os", "system", 0xF5)


def test_refer_refuses_a_pickle_with_code(tmp_path, canary):
    root = write_dataset(tmp_path, [make_ref(1)])
    path = root / "rrsisd" / "refs(unc).p"
    path.write_bytes(pickle.dumps([{**make_ref(1), "split": Attack(os.system, shell(canary))}]))
    with pytest.raises(UserError, match="nothing in it was run"):
        REFER(root, "rrsisd")


def test_plain_data_passes_whole(tmp_path):
    path = tmp_path / "plain.p"
    plain = [{"a": (1, -(2**70), 2.5, True, None)}, {"é"}, frozenset([1]), b"\xff", bytearray(b"x"), "日本"]
    for protocol in range(5, pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(plain, protocol))
        assert load_plain_pickle(path) == plain


def test_pickles_of_python_2(tmp_path):
    path = tmp_path / "python2.p"
    path.write_bytes(b"(lp0\n(dp1\nS'ref_id'\np2\nL5L\nsS'split'\np3\nVtrain\np4\nsa.")
    assert load_plain_pickle(path) == [{"ref_id": 5, "split": "train"}]
    path.write_bytes(b"\x80\x02]q\x00(U\x05shipsq\x01U\x05caf\xc3\xa9e.")
    assert load_plain_pickle(path) == ["ships", "café"], "UTF-8 where it is UTF-8"
    path.write_bytes(b"\x80\x02]q\x00(U\x05shipsq\x01U\x04caf\xe9e.")
    assert load_plain_pickle(path) == ["ships", "café"], "Latin-1 otherwise"


def test_truncated_pickle_and_garbage(tmp_path):
    path = tmp_path / "refs(unc).p"
    for protocol in (0, 2, 4):
        whole = pickle.dumps([make_ref(1), make_ref(2)], protocol)
        for length in range(0, len(whole), 7):
            refuse(path, whole[:length], f"({length} bytes) is not a complete pickle", "truncated")
    refuse(path, b"<!DOCTYPE html><html>404</html>", "is not a complete pickle")
    refuse(path, b"version https://git-lfs.github.com/spec/v1\n", "is not a complete pickle")


def test_unreadable_pickle(tmp_path):
    with pytest.raises(UserError, match=r"absent\.p cannot be read"):
        load_plain_pickle(tmp_path / "absent.p")
