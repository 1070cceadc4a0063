"""Each format's files become the same refs, annotations, images; a fault in a line is reported with its number."""
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from data.dataset import BadImage, load_image_and_mask
from refer import REFER
from refer.categories import OTHER, category_of_phrase
from refer.check import check_entries, long_sentences, read_index
from refer.check_files import check_masks_and_images
from refer.layouts import DATASETS
from refer.own import default_max_tokens, parse_datasets
from tools import check_dataset
from utils import UserError, sha256_of

MASK = np.array([[0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]], np.uint8)  # 4×3
ROOT = Path(__file__).resolve().parents[2]


def write_pictures(folder: Path, images: str, masks: str, names: list[str], object_value: int = 255) -> None:
    for below, pixels in ((images, np.zeros((3, 4, 3), np.uint8)), (masks, MASK * np.uint8(object_value))):
        (folder / below).mkdir(parents=True, exist_ok=True)
        for name in names:
            Image.fromarray(pixels).save(folder / below / name)


def write_risbench(root: Path, **lines: str) -> Path:
    """RISBench's layout: pictures for 1.png and 2.png, phrase files with these contents."""
    folder = root / "risbench"
    write_pictures(folder, "img_rgb", "mask", ["train_1.png", "train_2.png"])
    for split, text in lines.items():
        (folder / f"output_phrase_{split}.txt").write_text(text, encoding="utf-8")
    return folder


# Phrase files

def test_risbench(tmp_path):
    write_risbench(tmp_path, train="train_1.png The  dock near a boat .\r\ntrain_2.png Two planes\n\n",
                   val="train_2.png A pier\n")
    index = REFER(tmp_path, "risbench")
    assert index.format == "phrases" and index.splitBy == "own"
    assert [(ref["split"], ref["file_name"], ref["line"]) for ref in index.Refs.values()] == [
        ("train", "train_1.png", 1), ("train", "train_2.png", 2), ("val", "train_2.png", 1)]
    assert [ref["sentences"][0]["raw"] for ref in index.Refs.values()] == [
        "The  dock near a boat .", "Two planes", "A pier"]
    assert [index.Cats[ref["category_id"]] for ref in index.Refs.values()] == ["harbor", "airplane", "harbor"]
    ref_id = index.getRefIds(split="val")[0]
    assert index.image_path(ref_id) == str(tmp_path / "risbench/img_rgb/train_2.png")
    np.testing.assert_array_equal(index.getMask(ref_id)["mask"], MASK)
    assert index.getMask(ref_id)["area"] == 3
    assert len(index.Imgs) == 2 and index.annotation_files[1].endswith("output_phrase_val.txt")


def test_refsegrs_has_ids_several_sentences_and_a_threshold(tmp_path):
    folder = tmp_path / "refsegrs"
    write_pictures(folder, "images", "masks", ["7.tif", "12.tif"])
    Image.fromarray(MASK * np.uint8(50)).save(folder / "masks/12.tif")
    (folder / "output_phrase_train.txt").write_text("12 road marking\n7 a van\n12 the roads\n")
    (folder / "output_phrase_test.txt").write_text("7 low vegetation\n")
    index = REFER(tmp_path, "refsegrs")
    assert list(index.Refs) == [12, 7, "7-test"]
    assert [sentence["raw"] for sentence in index.Refs[12]["sentences"]] == ["road marking", "the roads"]
    assert [index.Cats[ref["category_id"]] for ref in index.Refs.values()] == ["road marking", "van", "low vegetation"]
    with pytest.raises(UserError, match="has no value above 50, which the object has in this format, but values of 50"):
        index.getMask(12)
    assert index.getMask(7)["area"] == index.getMask("7-test")["area"] == 3
    assert not Path(index.image_path(7)).with_suffix(".png").exists() and index.image_path(7).endswith("images/7.tif")


def test_of_three_channels_the_first_is_the_mask(tmp_path):
    folder = write_risbench(tmp_path, train="train_1.png a ship\n")
    Image.fromarray(np.stack([MASK, 0 * MASK, 7 * MASK], axis=2)).save(folder / "mask/train_1.png")
    np.testing.assert_array_equal(REFER(tmp_path, "risbench").getMask(0)["mask"], MASK)


@pytest.mark.parametrize(("phrase", "rule", "category"), [
    ("The road-marking by the roads", "refsegrs", "road marking"), ("the car on the road", "refsegrs", "car"),
    ("two buses", "refsegrs", "bus"), ("a carpet", "refsegrs", OTHER), ("impervious surfaces", "refsegrs",
                                                                      "impervious surface"),
    ("The planes", "risbench", "airplane"), ("helipads beside a helicopter", "risbench", "helipad"),
    ("baseball field", "risbench", "baseball diamond"), ("soccerfield", "risbench", "soccer ball field"),
    ("the Ground-Track Field", "risbench", "ground track field"), ("a toll station", "risbench",
                                                                  "expressway toll station"),
    ("the expressway toll stations", "risbench", "expressway toll station"), ("a thing", "risbench", OTHER)])
def test_categories_by_phrase(phrase, rule, category):
    assert category_of_phrase(phrase, rule) == category


# gRefCOCO

SQUARES = [[0, 0, 2, 0, 2, 1, 0, 1], [1, 1, 3, 1, 3, 3, 1, 3]]  # pixels (0, 0..1); rows 1, 2 of columns 1, 2


def grefcoco_ref(ref_id: int, ann_id: object, sentences: int = 1, **fields: object) -> dict:
    return {"ann_id": ann_id, "category_id": [1] if ann_id != [-1] else [-1], "image_id": 909, "ref_id": ref_id,
            "file_name": "COCO_train2014_000000000909_3.jpg", "no_target": ann_id == [-1], "split": "val",
            "sent_ids": [], "sentences": [{"raw": f"s {ref_id}", "sent": f"s {ref_id}", "tokens": ["s"],
                                           "sent_id": 10 * ref_id + i} for i in range(sentences)], **fields}


def write_grefcoco(root: Path, refs: list[dict], name: str = "grefs(unc).json") -> Path:
    folder = root / "grefcoco"
    folder.mkdir()
    dump = pickle.dumps if name.endswith(".p") else lambda content: json.dumps(content).encode()
    (folder / name).write_bytes(dump(refs))
    (folder / "instances.json").write_text(json.dumps({
        "images": [{"id": 909, "file_name": "COCO_train2014_000000000909.jpg", "height": 3, "width": 4}],
        "annotations": [{"id": 1, "image_id": 909, "category_id": 1, "segmentation": [SQUARES[0], [0, 0, 4, 4]]},
                        {"id": 2, "image_id": 909, "category_id": 1, "segmentation": [SQUARES[1]]},
                        {"id": 3, "image_id": 909, "category_id": 1, "iscrowd": 1,
                         "segmentation": {"size": [3, 4], "counts": [0, 12]}},
                        {"id": 4, "image_id": 909, "category_id": 1, "segmentation": [SQUARES[1], SQUARES[0][:7]]}],
        "categories": [{"id": 1, "name": "person"}]}))
    return folder


@pytest.mark.parametrize("name", ["grefs(unc).json", "grefs(unc).p"])
def test_grefcoco(tmp_path, name):
    write_grefcoco(tmp_path, [grefcoco_ref(1, [1, 2]), grefcoco_ref(2, [-1]), grefcoco_ref(3, [2, 3], sentences=2),
                              grefcoco_ref(4, 2), grefcoco_ref(5, [4]), grefcoco_ref(6, [1], sentences=0)], name)
    index = REFER(tmp_path, "grefcoco")
    first, second = np.zeros((3, 4), np.uint8), np.zeros((3, 4), np.uint8)
    first[0, :2] = second[1:, 1:3] = 1
    for ref_id, expected in ((1, first | second), (2, 0 * first), (3, second), (4, second), (5, second)):
        np.testing.assert_array_equal(index.getMask(ref_id)["mask"], expected)
    assert list(index.Refs) == [1, 2, 3, 4, 5], "a ref without a sentence is left out"
    assert index.notes == [("ref without sentences", f"{index.annotation_files[0]}: 1 refs without a sentence are left "
                                                     "out")]
    assert [ref["no_target"] for ref in index.Refs.values()] == [False, True, False, False, False]
    assert index.Refs[1]["ann_ids"] == [1, 2] and index.Cats[index.Refs[2]["category_id"]] == "no target"
    assert index.image_path(2).endswith("train2014/COCO_train2014_000000000909.jpg"), "the image entry's name"
    found = list(check_masks_and_images(index, read_images=False))
    assert not [finding for finding in found if finding.is_fault], "empty by design is no fault"


@pytest.mark.parametrize(("ann_id", "words"), [
    ([-1, 2], "its ann_id must be ids of annotations, or [-1] alone for no target, but is [-1, 2]"),
    ([], "[-1] alone for no target, but is []"), ([77], "points to annotation 77, which instances.json lacks")])
def test_grefcocos_faulty_lists_are_refused(tmp_path, ann_id, words):
    folder = write_grefcoco(tmp_path, [grefcoco_ref(1, [1]), grefcoco_ref(8, ann_id)])
    with pytest.raises(UserError) as caught:
        REFER(tmp_path, "grefcoco")
    assert str(caught.value).startswith(f"{folder / 'grefs(unc).json'}, ref 8 (entry 1, from 0)")
    assert words in str(caught.value)


# NWPU-Refer

def nwpu_ref(ref_id: int, ann_id: object, *raw: str, split: str = "val", **fields: object) -> dict:
    return {"ref_id": ref_id, "ann_id": ann_id, "image_id": 909, "category_id": 1, "split": split, "sentences": [
        {"raw": text, "sent": text, "tokens": [], "sent_id": 10 * ref_id + i} for i, text in enumerate(raw)], **fields}


def read_nwpu_refer(root: Path, refs: list[dict]) -> REFER:
    folder = write_grefcoco(root, refs, "new_refs(unc).p").rename(root / "nwpu_refer")
    (folder / "instances.json").rename(folder / "new_instances.json")
    return REFER(root, "nwpu_refer")


def test_nwpu_refer_unites_refs_of_equal_picture_sentence_and_split(tmp_path):
    index = read_nwpu_refer(tmp_path, [
        nwpu_ref(1, 1, "two ships", "one ship"), nwpu_ref(2, 2, " Two  ships"), nwpu_ref(3, 2, "two ships", split="x"),
        nwpu_ref(4, -1, "a car"), nwpu_ref(5, [-1], "a van"), nwpu_ref(6, None, "a bus"), nwpu_ref(7, 2, "two ships"),
        nwpu_ref(8, 1, "a tree", no_target=True), nwpu_ref(9, -1, "one ship")])
    first, second = np.zeros((3, 4), np.uint8), np.zeros((3, 4), np.uint8)
    first[0, :2] = second[1:, 1:3] = 1
    expected = [(1, "two ships", "val", first | second), ("1-2", "one ship", "val", first),
                (3, "two ships", "x", second),
                *((id_, text, "val", 0 * first) for id_, text in ((4, "a car"), (5, "a van"), (6, "a bus"),
                                                                  (8, "a tree")))]
    assert [(ref["ref_id"], ref["sentences"][0]["raw"], ref["split"]) for ref in index.Refs.values()] == [
        row[:3] for row in expected]
    for ref_id, _, _, mask in expected:
        np.testing.assert_array_equal(index.getMask(ref_id)["mask"], mask)
    assert [ref["no_target"] for ref in index.Refs.values()] == [False] * 3 + [True] * 4
    assert index.notes == [("united refs", "new_refs(unc).p: 5 refs of equal picture, sentence and split are united "
                            "into 2, of 7 in all; 1 of these are also said to mean nothing, which is ignored")]


@pytest.mark.parametrize(("ann_id", "words"), [
    ([-1, 2], "its ann_id must be the id of an annotation, or -1 for no target, but is [-1, 2]"),
    (77, "points to annotation 77, which new_instances.json lacks")])
def test_nwpu_refers_faulty_refs_are_refused(tmp_path, ann_id, words):
    with pytest.raises(UserError) as caught:
        read_nwpu_refer(tmp_path, [nwpu_ref(1, 1, "a ship"), nwpu_ref(8, ann_id, "a car")])
    assert "new_refs(unc).p, ref 8 (entry 1, from 0)" in str(caught.value) and words in str(caught.value)


# RIS-LAD

def write_ris_lad(root: Path, **entries: object) -> Path:
    folder = root / "ris_lad"
    write_pictures(folder, "images", "masks", ["1.png", "2.png"])
    (folder / "ann").mkdir()
    for split, of_split in entries.items():
        (folder / f"ann/{split}.json").write_text(json.dumps(of_split))
    return folder


def test_ris_lad(tmp_path):
    pair = {"image": "images/1.png", "mask": "masks/2.png"}
    write_ris_lad(tmp_path, train=[{**pair, "expression": "a car"}, {**pair, "expression": "the car"}],
                  test=[{"image": "2.png", "mask": "2.png", "expression": "a van", "category": "van"}])
    index = REFER(tmp_path, "ris_lad")
    assert [(ref["split"], ref["file_name"], len(ref["sentences"])) for ref in index.Refs.values()] == [
        ("train", "1.png", 2), ("test", "2.png", 1)]
    assert [index.Cats[ref["category_id"]] for ref in index.Refs.values()] == [OTHER, "van"]
    np.testing.assert_array_equal(index.getMask(0)["mask"], MASK)
    assert Path(index.image_path(0)).is_file() and not list(check_masks_and_images(index))


@pytest.mark.parametrize(("entry", "words"), [
    ("a car", "it must be an object with the texts image, mask, expression"),
    ({"image": "1.png", "mask": "1.png"}, "but 'expression' is None"),
    ({"image": "../1.png", "mask": "1.png", "expression": "a"}, "'image' must be a path inside the folder")])
def test_a_faulty_entry_of_ris_lad_is_named(tmp_path, entry, words):
    folder = write_ris_lad(tmp_path, val=[entry])
    with pytest.raises(UserError) as caught:
        REFER(tmp_path, "ris_lad")
    assert str(caught.value).startswith(f"{folder / 'ann/val.json'}, entry 0 (from 0): ") and words in str(caught.value)


# EarthReason

def write_earthreason(root: Path, names: dict[str, list[str]], answer: object = ("x",)) -> Path:
    folder = root / "earthreason/train"
    write_pictures(folder, "images", "labels", [])
    for name in names["images"]:
        Image.fromarray(np.zeros((3, 4, 3), np.uint8)).save(folder / "images" / name)
    for number, name in enumerate(names["labels"]):
        Image.fromarray(np.roll(MASK, number, axis=0)).save(folder / "labels" / name)
    (folder / "QAs").mkdir()
    for name in names["QAs"]:
        (folder / "QAs" / name).write_text(json.dumps({"questions": [f"where is {name}?", "and where?"],
                                                       "answer": answer}))
    return folder


def test_earthreason_pairs_by_name_else_by_order(tmp_path):
    by_name = {"images": ["b.png", "a.png"], "labels": ["a.png", "b.png"], "QAs": ["b.json", "a.json"]}
    by_order = {"images": ["1.png", "2.png"], "labels": ["m1.png", "m2.png"], "QAs": ["q1.json", "q2.json"]}
    for names, notes in ((by_name, 0), (by_order, 1)):
        root = tmp_path / str(notes)
        write_earthreason(root, names)
        index = REFER(root, "earthreason")
        assert [index.getMask(ref)["mask"].tolist() for ref in index.Refs] == [
            MASK.tolist(), np.roll(MASK, 1, axis=0).tolist()]
        assert [ref["sentences"][0]["raw"] for ref in index.Refs.values()] == [
            f"where is {name}?" for name in sorted(names["QAs"])]
        assert [Path(index.image_path(ref)).name for ref in index.Refs] == sorted(names["images"])
        assert [kind for kind, _ in index.notes] == notes * ["paired by order"]
        assert len(index.Sents) == 4 and not [found for found in check_masks_and_images(index) if found.is_fault]


def test_earthreasons_faults_are_named(tmp_path):
    folder = write_earthreason(tmp_path, {"images": ["a.png", "b.png"], "labels": ["a.png"], "QAs": ["a.json"]}, [])
    with pytest.raises(UserError, match="train: b has no file in labels and QAs"):
        REFER(tmp_path, "earthreason")
    (folder / "images/b.png").unlink()
    index = REFER(tmp_path, "earthreason")
    assert [found.kind for found in check_masks_and_images(index)] == ["mask without target"], "its answer is empty"
    digest = sha256_of(folder / "QAs")
    (folder / "QAs/a.json").write_text('{"questions": []}')
    assert sha256_of(folder / "QAs") != digest
    with pytest.raises(UserError, match=r"a\.json must be an object whose questions are texts, at least one"):
        REFER(tmp_path, "earthreason")
    (folder / "images/a.png").rename(folder / "images/c.png")
    (folder / "labels/b.png").write_text("")
    with pytest.raises(UserError, match="1 files in images, 2 files in labels, 1 files in QAs have different names"):
        REFER(tmp_path, "earthreason")


# JSON Lines and COCO's JSON, of any data set

def jsonl_line(image: int, sent: str, **fields: object) -> str:
    rle = coco_mask.encode(np.asfortranarray(MASK))
    return json.dumps({"split": "val", "image_id": image, "sent": sent, "file_name": f"{image}.jpg", "segmentation":
                       {"size": rle["size"], "counts": rle["counts"].decode()}, **fields}) + "\n"


def test_jsonl(tmp_path):
    (tmp_path / "rrsisd").mkdir()
    (tmp_path / "rrsisd/rrsisd_val.jsonl").write_text(
        jsonl_line(3, "a ship", ann_id=5, category_id=13, category_name="ship") +
        jsonl_line(3, "the ship", ann_id=5, category_id=13, category_name="ship") + jsonl_line(4, "x"))
    index = REFER(tmp_path, "rrsisd")
    assert index.format == "jsonl" and [len(ref["sentences"]) for ref in index.Refs.values()] == [2, 1]
    assert [index.Cats[ref["category_id"]] for ref in index.Refs.values()] == ["ship", OTHER]
    for ref in index.Refs.values():
        np.testing.assert_array_equal(index.getMask(ref)["mask"], MASK)
    assert index.where(1) == f"{tmp_path / 'rrsisd/rrsisd_val.jsonl'}, line 3"


def test_the_authors_format_is_read_before_another(tmp_path):
    folder = write_risbench(tmp_path, train="train_1.png a ship\n")
    (folder / "risbench_train.jsonl").write_text(jsonl_line(3, "a ship"))
    assert REFER(tmp_path, "risbench").format == "phrases"


# Bad input: one line that names file and line; check_dataset reports everything in one pass

@pytest.mark.parametrize(("second", "words"), [
    (jsonl_line(4, "x", ref_id=1, sent_id=1), "the ref_id 1 of a ref of another split"),
    (jsonl_line(3, "x").replace("3.jpg", "other.jpg"), "the image_id 3 of the image '3.jpg'"),
    (jsonl_line(4, "x", ann_id=5), "the ann_id 5 of another mask or image"),
    (jsonl_line(3, "x", ann_id=5).replace('"counts": "', '"counts": "0'), "the ann_id 5 of another mask or image")])
def test_ids_that_start_anew_in_each_split_of_jsonl_are_refused(tmp_path, second, words):
    (tmp_path / "rrsisd").mkdir()
    own = {"ref_id": 1, "sent_id": 0} if "ref_id" in words else {"ann_id": 5}
    (tmp_path / "rrsisd/rrsisd_train.jsonl").write_text(jsonl_line(3, "a ship", **own).replace('"val"', '"train"'))
    (tmp_path / "rrsisd/rrsisd_val.jsonl").write_text(second)
    with pytest.raises(UserError) as caught:
        REFER(tmp_path, "rrsisd")
    assert f"rrsisd_val.jsonl, line 1 has {words}" in str(caught.value) and "\n" not in str(caught.value)


def test_a_ref_id_that_starts_anew_in_each_image_of_jsonl_is_refused(tmp_path):
    (tmp_path / "rrsisd").mkdir()
    (tmp_path / "rrsisd/rrsisd_val.jsonl").write_text(jsonl_line(3, "a", ref_id=0) + jsonl_line(4, "b", ref_id=0))
    with pytest.raises(UserError, match=r"rrsisd_val\.jsonl, line 2 has the ref_id 0 of another mask or image"):
        REFER(tmp_path, "rrsisd")


def test_an_id_in_jsonl_that_is_none_is_left_out(tmp_path):
    (tmp_path / "rrsisd").mkdir()
    (tmp_path / "rrsisd/rrsisd_val.jsonl").write_text(jsonl_line(3, "a ship", ref_id=[1], ann_id={}, sent_id=None))
    assert list(REFER(tmp_path, "rrsisd").Refs) == [0]


def test_a_phrase_file_in_utf_16_is_named(tmp_path):
    folder = write_risbench(tmp_path, train="train_1.png a ship\n")
    (folder / "output_phrase_train.txt").write_text("train_1.png a ship\n", encoding="utf-16")
    with pytest.raises(UserError, match=r"output_phrase_train\.txt is UTF-16: save it as UTF-8 \(iconv"):
        REFER(tmp_path, "risbench")


def test_a_mask_of_another_shape_than_its_image_is_refused(tmp_path):
    (tmp_path / "rrsisd").mkdir()
    (tmp_path / "rrsisd/rrsisd_val.jsonl").write_text(jsonl_line(3, "a ship"))   # its mask is 4×3
    (tmp_path / "images/rrsisd/JPEGImages").mkdir(parents=True)
    for size, right in (((8, 6), True), ((6, 6), True), ((3, 4), False), ((12, 3), False)):
        Image.new("RGB", size).save(tmp_path / "images/rrsisd/JPEGImages/3.jpg")
        index = REFER(tmp_path, "rrsisd")
        if right:
            load_image_and_mask(index, next(iter(index.Refs.values())))
        else:
            with pytest.raises(BadImage, match=rf"its mask is 4×3, its image .* {size[0]}×{size[1]}, .*another shape"):
                load_image_and_mask(index, next(iter(index.Refs.values())))


def test_a_sentence_that_is_repeated_word_for_word_is_one_sample(toy, tmp_path):
    (tmp_path / "rrsisd").mkdir()
    refs = pickle.loads((toy / "rrsisd/refs(unc).p").read_bytes())
    refs[0]["sentences"] = [refs[0]["sentences"][0]] * 2
    (tmp_path / "rrsisd/refs(unc).p").write_bytes(pickle.dumps(refs, 4))
    (tmp_path / "rrsisd/instances.json").write_bytes((toy / "rrsisd/instances.json").read_bytes())
    assert len(REFER(tmp_path, "rrsisd").Refs[refs[0]["ref_id"]]["sentences"]) == 1


def test_a_number_of_numpy_in_refs_is_refused_with_the_remedy(toy, tmp_path):
    (tmp_path / "rrsisd").mkdir()
    (tmp_path / "rrsisd/refs(unc).p").write_bytes(pickle.dumps([{"ref_id": np.int64(3)}], 4))
    (tmp_path / "rrsisd/instances.json").write_bytes((toy / "rrsisd/instances.json").read_bytes())
    with pytest.raises(UserError, match=r"if the file is your own, write int\(x\), float\(x\)"):
        REFER(tmp_path, "rrsisd")


@pytest.mark.parametrize("annotations", [[{"id": 1, "image_id": 1, "category_id": 1, "caption": "a ship"}]])
def test_cocos_json_without_refs_names_the_fields_and_the_import(tmp_path, annotations):
    (tmp_path / "rrsisd").mkdir()
    content = {"images": [{"id": 1, "file_name": "1.jpg"}], "categories": [{"id": 1, "name": "ship"}]}
    path = tmp_path / "rrsisd/rrsisd_val.json"
    path.write_text(json.dumps({**content, "annotations": annotations}))
    with pytest.raises(UserError, match=r"rrsisd_val\.json: no annotation is a ref; the first one has none of ref_id "
                                        r"and sentences.* tools/import_dataset\.py"):
        REFER(tmp_path, "rrsisd")
    ref = {**annotations[0], "id": 2, "ref_id": 2, "sentences": [{"sent_id": 1, "raw": "x", "tokens": ["x"]}]}
    path.write_text(json.dumps({**content, "annotations": [*annotations, ref]}))
    with pytest.raises(UserError, match=r"rrsisd_val\.json: annotation 1 has none of ref_id and sentences"):
        REFER(tmp_path, "rrsisd")


def spoil_jsonl(root: Path) -> Path:
    (root / "rrsisd").mkdir()
    path = root / "rrsisd/rrsisd_val.jsonl"
    path.write_text(jsonl_line(3, "a ship") + jsonl_line(4, "x")[:-30] + "\n")
    return path


@pytest.mark.parametrize(("text", "words"), [
    ("train_1.png a ship\ntrain_2.png\n", "line 2 has no phrase after 'train_2.png'; a line is NAME PHRASE"),
    ("1 a ship\n", "line 1 begins with '1', not with the file name of an image"),
    ("../a.png a ship\n", "line 1 begins with '../a.png'")])
def test_a_bad_phrase_line_is_named(tmp_path, text, words):
    path = write_risbench(tmp_path, train=text) / "output_phrase_train.txt"
    with pytest.raises(UserError) as caught:
        REFER(tmp_path, "risbench")
    assert str(caught.value).startswith(f"{path}, {words}") and "\n" not in str(caught.value)


def test_a_line_that_is_no_text_is_named(tmp_path):
    path = write_risbench(tmp_path, train="train_1.png a ship\n") / "output_phrase_train.txt"
    path.write_bytes(path.read_bytes() + b"train_2.png a \xff\xfe ship\n")
    with pytest.raises(UserError, match=r"output_phrase_train.txt, line 2 is not UTF-8 text"):
        REFER(tmp_path, "risbench")


def test_a_cut_jsonl_line_is_named(tmp_path):
    path = spoil_jsonl(tmp_path)
    with pytest.raises(UserError) as caught:
        REFER(tmp_path, "rrsisd")
    assert str(caught.value).startswith(f"{path}, line 2 is not a whole JSON object") and "cut off" in str(caught.value)


def picture(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.astype(np.uint8))


# What is done to the pictures of line 2, what loading it says, check_dataset's kind of fault
BAD_PICTURES = {
    "no image": (lambda folder: (folder / "img_rgb/train_2.png").unlink(),
                 "its image {}/img_rgb/train_2.png is missing", "missing image"),
    "no mask": (lambda folder: (folder / "mask/train_2.png").unlink(), "its mask {}/mask/train_2.png is missing",
                "missing mask"),
    "another size": (lambda folder: picture(np.zeros((5, 4))).save(folder / "mask/train_2.png"),
                     "its mask {0}/mask/train_2.png is 4×5, its image {0}/img_rgb/train_2.png 4×3", "size mismatch"),
    "no mask but a picture": (lambda folder: picture(np.arange(12).reshape(3, 4)).save(folder / "mask/train_2.png"),
                              "its mask {}/mask/train_2.png has 12 different values: a mask has two", "no mask"),
    "no picture": (lambda folder: (folder / "mask/train_2.png").write_text("<html>"),
                   "its mask {}/mask/train_2.png cannot be read", "no mask"),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_a_bad_picture_is_named_with_its_line(tmp_path, name):
    spoil, words, kind = BAD_PICTURES[name]
    folder = write_risbench(tmp_path, train="train_1.png a ship\ntrain_2.png a dam\n")
    spoil(folder)
    index = REFER(tmp_path, "risbench")
    load_image_and_mask(index, index.Refs[0])
    with pytest.raises(BadImage) as caught:
        load_image_and_mask(index, index.Refs[1])
    where = f"{folder / 'output_phrase_train.txt'}, line 2: "
    assert str(caught.value).startswith(where + words.format(folder)) and "\n" not in str(caught.value)
    faults = [finding for finding in check_masks_and_images(index) if finding.is_fault and finding.kind != "empty mask"]
    assert [fault.kind for fault in faults] == [kind] and faults[0].message.startswith(where.removesuffix(": "))


def test_check_dataset_reports_all_in_one_pass(tmp_path, capsys):
    folder = write_risbench(tmp_path, train="train_1.png a ship\ntrain_9.png a dam\ntrain_2.png\n../x a\n",
                            val="train_2.png " + 30 * "long " + "\n", test="train_1.png a ship\n")
    (folder / "mask/train_1.png").unlink()
    index, refused = read_index(tmp_path, "risbench", "unc")
    found = [*refused, *check_entries(index), *long_sentences(index, 20, str.split), *check_masks_and_images(index)]
    kinds = sorted(finding.kind for finding in found if finding.is_fault)
    assert kinds == ["malformed line", "malformed line", "missing image", "missing mask", "missing mask"]
    assert check_dataset.main(["--refer_data_root", str(tmp_path), "--dataset", "risbench", "-j", "0",
                               "--max_tokens", "20"]) == 1
    out = capsys.readouterr().out
    assert "FAULT: malformed line, 2" in out and "note: long sentence, 1 " in out
    assert "32 tokens; beyond 20: long long long long long long long long long long long" in out
    assert "    test: 1 refs, 1 sentences, 1 images; published: 16,159 sentences\n" in out
    assert check_dataset.main(["--refer_data_root", str(tmp_path), "--dataset", "risbench", "-j", "0"]) == 1
    assert "long sentence" not in capsys.readouterr().out, "50 tokens are RISBench's own"


# The table

def test_data_sets_are_named_with_their_ways_of_splitting():
    assert [(dataset.name, way) for dataset, way in parse_datasets("refcoco,refcocog:umd, risbench")] == [
        ("refcoco", "unc"), ("refcocog", "umd"), ("risbench", "own")]
    (_, way), = parse_datasets("uavid_ris")
    assert way == "uow", "the default stands for the only way"
    for text, words in (("coco", "Unknown data set 'coco'"), ("refcocog", "refcocog is not split by 'unc'"),
                        ("risbench:umd", "risbench is not split by 'umd'"), ("refcoco,refcoco", "names refcoco twice")):
        with pytest.raises(ValueError, match=words):
            parse_datasets(text)


def test_sentences_of_risbench_are_longer():
    both = [dataset for dataset, _ in parse_datasets("rrsisd,risbench")]
    assert default_max_tokens(both[:1]) == 20 and default_max_tokens(both) == 50


def test_known_totals():
    assert sum(DATASETS["refsegrs"].published_sentences.values()) == 4_420
    assert sum(DATASETS["risbench"].published_sentences.values()) == 52_472


def test_the_table_imports_no_package():
    code = ("import sys, refer.layouts, refer.own; "
            "print([name for name in ('torch', 'numpy', 'PIL', 'pycocotools') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(("dataset", "folder", "images"), [
    ("uavid_ris", "uavid_ris", "images/uavid_ris/PNGImages"), ("vdd_ris", "vdd_ris", "images/vdd_ris/PNGImages"),
    ("remotesam-270k", "RemoteSAM-270K", "RemoteSAM-270K/JPEGImages")])
def test_other_sets_in_refers_layout(tmp_path, dataset, folder, images):
    (tmp_path / folder).mkdir()
    way = next(iter(DATASETS[dataset].splits))
    sentence = {"sent_id": 1, "raw": "x", "sent": "x", "tokens": ["x"]}
    (tmp_path / folder / f"refs({way}).p").write_bytes(pickle.dumps([
        {"ref_id": 1, "ann_id": 1, "image_id": 1, "category_id": 1, "split": "val", "sentences": [sentence]}]))
    (tmp_path / folder / "instances.json").write_text(json.dumps({
        "images": [{"id": 1, "file_name": "1.png", "height": 3, "width": 4}], "categories": [{"id": 1, "name": "c"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [SQUARES[0]]}]}))
    assert REFER(tmp_path, dataset).image_path(1) == str(tmp_path / images / "1.png")
