"""tools/check_dataset.py: each kind of damage is reported, all of it in one pass, and sound data passes."""
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refer import REFER, check
from refer.check import FAULTS, NOTES, Finding, check_entries, read_index, summarize
from refer.check_files import check_masks_and_images
from refer.layouts import DATASETS
from tools import check_dataset, ref_sheet
from utils import UserError
from utils.image_files import open_image

TOOL = Path(check_dataset.__file__)
SQUARE = [8, 8, 24, 8, 24, 24, 8, 24]
BIG_RLE = {"size": [80, 80], "counts": [100, 6300]}
USUAL_NOTES = {"categories_id": 40, "not 800×800": 20}  # of the toy set: 20 images of 64 px, 40 refs


class Dataset:
    """A copy of the toy set to be damaged: ref and annotation n belong to image n // 2 + 1, `00001.jpg` and so on."""

    def __init__(self, folder: Path):
        self.root, self.dataset, self.images = folder, "rrsisd", folder / "images/rrsisd/JPEGImages"
        self.refs = pickle.loads((folder / "rrsisd/refs(unc).p").read_bytes())
        content = json.loads((folder / "rrsisd/instances.json").read_text())
        self.image_entries, self.annotations, self.categories = (
            content[name] for name in ("images", "annotations", "categories"))

    def save(self) -> None:
        instances = {"images": self.image_entries, "annotations": self.annotations, "categories": self.categories}
        (self.root / self.dataset).mkdir(exist_ok=True)
        (self.root / self.dataset / "refs(unc).p").write_bytes(pickle.dumps(self.refs, 4))
        (self.root / self.dataset / "instances.json").write_text(json.dumps(instances))

    def become_refcoco(self) -> None:
        """The same in RefCOCO's layout, with its conventions."""
        self.dataset = "refcoco"
        (self.root / "images/mscoco/images").mkdir(parents=True)
        self.images = self.images.rename(self.root / "images/mscoco/images/train2014")
        for annotation in self.annotations:
            annotation["category_id"] = annotation.pop("categories_id")
        first_test_image = first_of(self, "test")["image_id"]
        for ref in self.refs:
            ref["file_name"] = ref["file_name"].replace(".jpg", f"_{ref['ann_id']}.jpg")
            if ref["split"] == "test":
                ref["split"] = "testA" if ref["image_id"] == first_test_image else "testB"

    def findings(self, read_images: bool = True, workers: int = 0) -> list[Finding]:
        self.save()
        index, refused = read_index(self.root, self.dataset, "unc")
        return [*refused, *check_entries(index), *check_masks_and_images(index, read_images, workers)]


@pytest.fixture
def data(toy, tmp_path) -> Dataset:
    shutil.copytree(toy, tmp_path / "data")
    return Dataset(tmp_path / "data")


def count(findings: list[Finding], is_fault: bool) -> Counter:
    assert all(finding.kind in (FAULTS if finding.is_fault else NOTES) for finding in findings)
    return Counter(finding.kind for finding in findings if finding.is_fault == is_fault)


def put(entry: dict, **fields: object) -> None:
    entry.update(fields)


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:int(share * len(content))])


def resize(path: Path, size: tuple[int, int]) -> None:
    with Image.open(path) as image:
        image.resize(size).save(path)


def turn(path: Path) -> None:
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = 6   # orientation
        image.save(path, exif=exif)


def drop_val(data: Dataset) -> None:
    data.refs = [ref for ref in data.refs if ref["split"] != "val"]


def first_of(data: Dataset, split: str) -> dict:
    return next(ref for ref in data.refs if ref["split"] == split)


def segment(data: Dataset, segmentation: object) -> None:
    data.annotations[5].update(segmentation=segmentation, area=0 if segmentation == [] else 256)


# What is done to the toy set, the faults expected, the notes expected more or fewer than usual.
DAMAGES = {
    "ids that lead elsewhere": (
        lambda d: (put(d.refs[5], ref_id="../../victim/photo"), put(d.refs[6]["sentences"][0], sent_id="a/b")),
        {"unsafe id": 2}, {}),
    "image elsewhere": (lambda d: put(d.image_entries[2], file_name="../x.jpg"),
                        {"malformed entry": 1, "unknown image": 2}, {"not 800×800": -1}),
    "sentence that is no text": (lambda d: put(d.refs[5]["sentences"][0], raw="\udc80"), {"malformed entry": 1}, {}),
    "ref is no dict": (lambda d: d.refs.append("x"), {"malformed entry": 1}, {}),
    "ref lacks its split": (lambda d: d.refs[5].pop("split"), {"malformed entry": 1}, {}),
    "ref with two bad fields": (lambda d: put(d.refs[5], ann_id=None, image_id=[1]), {"malformed entry": 2}, {}),
    "sentence lacks its text": (lambda d: d.refs[5]["sentences"][0].pop("raw"), {"malformed entry": 1}, {}),
    "sentence is no dict": (lambda d: d.refs[5]["sentences"].append(7), {"malformed entry": 1}, {}),
    "annotation without an image": (
        lambda d: d.annotations[5].pop("image_id"), {"malformed entry": 1, "unknown annotation": 1},
        {"categories_id": -1}),
    "annotation without a segmentation": (lambda d: d.annotations[5].pop("segmentation"), {"malformed entry": 1}, {}),
    "image without a name": (lambda d: d.image_entries[2].pop("file_name"), {"malformed entry": 1, "unknown image": 2},
                             {"not 800×800": -1}),
    "image without a height": (lambda d: d.image_entries[2].pop("height"), {"malformed entry": 1}, {}),
    "image with a width in words": (lambda d: put(d.image_entries[2], width="64"), {"malformed entry": 1}, {}),
    "nameless category": (lambda d: d.categories.append({"id": 20}), {"malformed entry": 1}, {}),
    "ref twice": (lambda d: d.refs.append(d.refs[5]), {"repeated id": 1}, {}),
    "annotation twice": (lambda d: d.annotations.append(d.annotations[5]), {}, {"repeated entry": 1}),
    "annotation id twice": (lambda d: d.annotations.append({**d.annotations[5], "iscrowd": 0}), {"repeated id": 1}, {}),
    "image twice": (lambda d: d.image_entries.append(d.image_entries[2]), {}, {"repeated entry": 1}),
    "image id twice": (lambda d: d.image_entries.append({**d.image_entries[2], "width": 65}), {"repeated id": 1}, {}),
    "category id twice": (lambda d: d.categories.append({"id": 3, "name": "x"}), {"repeated id": 1}, {}),
    "sentence twice": (lambda d: d.refs[5]["sentences"].append(d.refs[5]["sentences"][0]), {}, {"repeated entry": 1}),
    "sentence id twice in a ref": (
        lambda d: d.refs[5]["sentences"].append({**d.refs[5]["sentences"][0], "raw": "x"}), {"repeated id": 1}, {}),
    "sentence id in two refs": (lambda d: put(d.refs[5]["sentences"][0], sent_id=0), {"repeated id": 1}, {}),
    "unknown annotation": (lambda d: put(d.refs[5], ann_id=99), {"unknown annotation": 1}, {}),
    "unknown image": (lambda d: put(d.refs[5], image_id=99), {"unknown image": 1}, {}),
    "ref of unknown category": (lambda d: put(d.refs[5], category_id=99), {"unknown category": 1},
                                {"other category": 1}),
    "annotation of unknown category": (
        lambda d: put(d.annotations[5], categories_id=99), {"unknown category": 1}, {"other category": 1}),
    "annotation with a list for a category": (
        lambda d: put(d.annotations[5], categories_id=[1]), {"unknown category": 1}, {"other category": 1}),
    "annotation of another image": (lambda d: put(d.refs[5], ann_id=0), {"annotation of another image": 1},
                                    {"other category": 1}),
    "no sentence": (lambda d: put(d.refs[5], sentences=[]), {"no sentence": 1}, {}),
    "empty sentence": (lambda d: put(d.refs[5]["sentences"][0], raw=""), {"empty sentence": 1}, {}),
    "blank sentence": (lambda d: put(d.refs[5]["sentences"][0], raw=" \t\n"), {"empty sentence": 1}, {}),
    "split without refs": (drop_val, {"empty split": 1}, {"not 800×800": -2}),
    "split of another name": (lambda d: put(first_of(d, "train"), split="Train"), {},
                              {"other split": 1, "image in train and elsewhere": 1}),
    "image in train and test": (lambda d: put(first_of(d, "train"), split="test"), {},
                                {"image in train and elsewhere": 1}),
    "image in val and test": (lambda d: put(first_of(d, "test"), split="val"), {}, {"image in two splits": 1}),
    "RLE cut off": (lambda d: segment(d, [{"size": [64, 64], "counts": "12"}]), {"malformed segmentation": 1}, {}),
    "RLE without a size": (lambda d: segment(d, {"counts": [4096]}), {"malformed segmentation": 1}, {}),
    "polygon of 7 numbers": (lambda d: segment(d, [SQUARE[:7]]), {"malformed segmentation": 1}, {}),
    "a number for a segmentation": (lambda d: segment(d, 5), {"malformed segmentation": 1}, {}),
    "polygon": (lambda d: segment(d, [SQUARE]), {}, {}),
    "polygon outside": (lambda d: segment(d, [SQUARE, [60, 60, 65.5, 60, 65.5, 70]]), {"polygon outside its image": 1},
                        {}),
    "polygon above": (lambda d: segment(d, [SQUARE, [4, 4, 8, -1.5, 8, 4]]), {"polygon outside its image": 1}, {}),
    "polygon on the border": (lambda d: segment(d, [SQUARE, [60, 64, 65, 64, 65, 65, -1, -1, 60, 64]]), {},
                              {"area": 1}),
    "empty mask": (lambda d: segment(d, []), {}, {"empty mask": 1}),
    "missing image": (lambda d: (d.images / "00003.jpg").unlink(), {"missing image": 1}, {}),
    "image that viewers turn": (lambda d: turn(d.images / "00003.jpg"), {}, {"turned picture": 1}),
    "truncated image": (lambda d: cut(d.images / "00003.jpg", 0.6), {"broken image": 1}, {}),
    "image of no bytes": (lambda d: cut(d.images / "00003.jpg", 0), {"broken image": 1}, {}),
    "page for an image": (lambda d: (d.images / "00003.jpg").write_text("<html>404</html>"), {"broken image": 1}, {}),
    "image name with a null byte": (lambda d: put(d.image_entries[2], file_name="a\0.jpg"),
                                    {"malformed entry": 1, "unknown image": 2}, {"not 800×800": -1}),
    "mask of another size": (lambda d: segment(d, BIG_RLE), {}, {"size mismatch": 1, "area": 1}),
    "file of another size": (lambda d: resize(d.images / "00003.jpg", (64, 60)), {}, {"size mismatch": 1}),
    "entry of another size": (lambda d: put(d.image_entries[2], height=60), {}, {"size mismatch": 1}),
    "image of the usual size": (lambda d: resize(d.images / "00003.jpg", (800, 800)), {},
                                {"size mismatch": 1, "not 800×800": -1}),
    "area": (lambda d: put(d.annotations[5], area=1), {}, {"area": 1}),
    "bbox": (lambda d: put(d.annotations[5], bbox=[1, 2, 3]), {}, {"box": 1}),
    "ref names another file": (lambda d: put(d.refs[5], file_name="00009.jpg"), {}, {"other file name": 1}),
}

@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_reported(data, name):
    damage, faults, notes = DAMAGES[name]
    damage(data)
    found = data.findings()
    assert count(found, True) == faults
    usual = Counter(USUAL_NOTES)
    usual.update(notes)
    assert count(found, False) == +usual
    assert not any("\n" in finding.message for finding in found)


# The same with RefCOCO's layout: what are quirks of RRSIS-D are faults elsewhere

@pytest.mark.parametrize(("damage", "faults", "notes"), [
    (lambda d: None, {}, {}),
    (lambda d: segment(d, []), {"empty mask": 1}, {}),
    (lambda d: segment(d, BIG_RLE), {"size mismatch": 1}, {"area": 1}),
    (lambda d: resize(d.images / "00003.jpg", (64, 60)), {"size mismatch": 1}, {}),
    (lambda d: (segment(d, [SQUARE]), d.annotations[4].update(segmentation=[SQUARE], area=256),
                resize(d.images / "00003.jpg", (60, 60))), {"size mismatch": 1}, {}),
    (lambda d: put(d.refs[5], file_name="00009_5.jpg"), {}, {"file name of refs": -1, "other file name": 1}),
    (lambda d: put(first_of(d, "testB"), split="testAB"), {}, {"image in two splits": 1}),
    (lambda d: [put(ref, split="testA") for ref in d.refs if ref["split"] == "testB"], {"empty split": 1}, {}),
])
def test_quirks_belong_to_a_data_set(data, damage, faults, notes):
    data.become_refcoco()
    damage(data)
    found = data.findings()
    assert count(found, True) == faults
    usual = Counter({"file name of refs": 40})
    usual.update(notes)
    assert count(found, False) == +usual


# Categories and counts, beside the published ones

def name_category(data: Dataset, id_: int, name: str) -> None:
    data.categories[id_]["name"] = name


@pytest.mark.parametrize(("damage", "messages"), [
    (lambda d: (name_category(d, 3, "ship"), name_category(d, 13, "airport")),
     ["category 3 is 'ship', published is 'airport'", "category 13 is 'airport', published is 'ship'"]),
    (lambda d: name_category(d, 19, "wind mill"), ["category 19 is 'wind mill', published is 'windmill'"]),
    (lambda d: d.categories.pop(0), ["category 0 is missing, published is 'Expressway-Service-area'"]),
    (lambda d: d.categories.append({"id": 20, "name": "pier"}), ["category 20 is 'pier', published are 0 to 19"]),
    (lambda d: d.categories.reverse(), []),  # their order in the file does not matter
])
def test_a_category_with_another_id_or_name_is_noted(data, damage, messages):
    damage(data)
    found = data.findings(read_images=False)
    assert [f.message for f in found if f.kind == "not as published"] == messages
    assert not count(found, True)


def test_only_rrsisds_categories_are_known(data):
    data.become_refcoco()
    name_category(data, 3, "person")
    assert not count(data.findings(read_images=False), False)["not as published"]


@pytest.mark.parametrize(("dataset", "split_by", "total"), [
    ("rrsisd", "unc", 17_402), ("refcoco", "unc", 50_000), ("refcoco+", "unc", 49_856), ("refcocog", "umd", 49_822)])
def test_the_published_counts_are_those_of_the_splits_and_sum_up(dataset, split_by, total):
    published = check.PUBLISHED_REFS[dataset, split_by]
    assert tuple(published) == DATASETS[dataset].splits[split_by] and sum(published.values()) == total


def test_refs_are_counted_per_split_and_category(data, capsys):
    names = [category["name"] for category in data.categories]
    refs_of = Counter((names[ref["category_id"]], ref["split"]) for ref in data.refs)
    table = {name: {split: refs_of[name, split] for split in ("train", "val", "test")} for name in names}
    path = data.root / "result.json"
    _, out, _ = run_tool(capsys, "--refer_data_root", data.root, "-j", 0, "--json", path)
    assert json.loads(path.read_text())["summary"]["categories_by_split"] == table
    used = {name: counts for name, counts in table.items() if sum(counts.values())}
    lines = out[out.index("refs per category"):].splitlines()
    rows = [["refs", "per", "category", "train", "val", "test", "all"],
            *([name, *map(str, counts.values()), str(sum(counts.values()))] for name, counts in used.items())]
    assert [line.split() for line in lines[:len(rows)]] == rows
    assert len({len(line) for line in lines[:len(rows)]}) == 1  # aligned
    assert lines[len(rows)] == "no refs: " + ", ".join(name for name in names if name not in used)


def test_splits_of_other_names_are_counted_too(data):
    put(first_of(data, "val"), split="extra")
    data.save()
    table = summarize(read_index(data.root, "rrsisd", "unc")[0])["categories_by_split"]
    assert all(list(counts) == ["train", "val", "test", "extra"] for counts in table.values())
    assert sum(counts["extra"] for counts in table.values()) == 1


# The contact sheet

@pytest.fixture
def drawn(monkeypatch) -> list[tuple[list[Image.Image], str]]:
    """What is laid out on the sheets drawn from now on: panels and text of each ref."""
    rows, lay_out = [], ref_sheet.sheet
    monkeypatch.setattr(ref_sheet, "sheet", lambda added, *how: rows.extend(added) or lay_out(added, *how))
    return rows


def test_the_sheet_shows_refs_their_masks_and_what_is_said_of_them(toy, refer, tmp_path, capsys, drawn):
    path = tmp_path / "made" / "sheet.png"
    status, out, err = run_tool(capsys, "--refer_data_root", toy, "-j", 0, "--pictures", path, "--samples", 5)
    assert (status, err) == (0, "") and out.endswith(f"5 refs with their masks: {path}\n") and len(drawn) == 5
    with Image.open(path) as written:
        assert written.width > 4 * 2 * 192 and 2 * 192 < written.height < 3 * 192   # four refs a row, two rows
    assert list(path.parent.iterdir()) == [path]
    for (image, masked), text in drawn:
        ref_id, split, category, sentence = re.fullmatch(r"ref (\d+), (\w+), (\w+)\n(.*)", text, re.S).groups()
        ref = refer.Refs[int(ref_id)]
        assert (split, category) == (ref["split"], refer.Cats[ref["category_id"]])
        assert " ".join(sentence.split()) == ref["sentences"][0]["raw"]
        mask = np.kron(refer.getMask(ref)["mask"], np.ones((3, 3))) == 1   # 64 px drawn as 192
        changed = (np.asarray(image) != np.asarray(masked)).any(-1)
        assert (changed & mask).sum() > 0.95 * mask.sum() and not (changed & ~mask).any()


def test_the_seed_chooses_the_refs(toy, tmp_path, capsys):
    sheets = []
    for number, seed in enumerate((1, 1, 2)):
        path = tmp_path / f"{number}.png"
        run_tool(capsys, "--refer_data_root", toy, "-j", 0, "--no_images", "--pictures", path, "--seed", seed)
        sheets.append(path.read_bytes())
    assert sheets[0] == sheets[1] != sheets[2]


@pytest.mark.parametrize(("flags", "number"), [(["--samples", 99], 40), ([], 16), (["--split", "val"], 4)])
def test_how_many_are_drawn(toy, tmp_path, capsys, drawn, flags, number):
    run_tool(capsys, "--refer_data_root", toy, "-j", 0, "--no_images", "--pictures", tmp_path / "sheet.png", *flags)
    assert len({text for _, text in drawn}) == len(drawn) == number
    assert "--split" not in flags or all(", val, " in text for _, text in drawn)


@pytest.mark.parametrize(("damage", "refs", "words"), [
    (lambda d: (d.images / "00003.jpg").unlink(), 2, "is missing"),
    (lambda d: cut(d.images / "00003.jpg", 0.6), 2, "cannot be read"),
    (lambda d: segment(d, [SQUARE[:7]]), 1, "segmentation is malformed"),
    (lambda d: shutil.rmtree(d.images), 40, "is missing"),
])
def test_what_cannot_be_read_is_shown_as_such(data, tmp_path, capsys, drawn, monkeypatch, damage, refs, words):
    said, draw = [], ref_sheet.notice
    monkeypatch.setattr(ref_sheet, "notice", lambda text: said.append(text) or draw(text))
    damage(data)
    data.save()
    run_tool(capsys, "--refer_data_root", data.root, "-j", 0, "--pictures", tmp_path / "sheet.png", "--samples", 40)
    assert len(drawn) == 40 and len(said) == refs and all(words in text for text in said)
    with Image.open(tmp_path / "sheet.png") as written:
        assert written.convert("RGB").getcolors(1 << 20)


@pytest.mark.parametrize("pixels", [0, 1])
def test_even_one_pixel_of_a_mask_is_drawn(pixels):
    mask = np.zeros((4000, 3000), np.uint8)
    mask[1234, 2345] = pixels
    image, masked = (np.asarray(panel) for panel in ref_sheet.draw_mask(Image.new("RGB", (800, 800)), mask))
    assert np.argwhere((image != masked).any(-1)).tolist() == [[1234 * 192 // 4000, 2345 * 192 // 3000]] * pixels


def test_long_and_odd_sentences_fit_below_their_ref(data):
    index = REFER(data.root, "rrsisd")
    index.Refs[5]["sentences"] = [{"sent_id": 500 + i, "raw": raw, "tokens": []}
                                  for i, raw in enumerate(["", "a\n\ud800 b", "word " * 99, "x" * 999])]
    lines = ref_sheet.caption(index, index.Refs[5]).split("\n")
    assert lines[1:3] == ["(empty sentence)", "a \\ud800 b"] and lines[-1] == "…"
    assert len(lines) == ref_sheet.CAPTION_LINES and max(map(len, lines)) <= ref_sheet.CAPTION_CHARACTERS
    ref_sheet.draw_refs(index, [index.Refs[5]])


def test_a_sheet_is_written_whole_or_not_at_all(toy, tmp_path, capsys, monkeypatch):
    def full_disk(image: Image.Image, path: Path, *how: object) -> None:
        path.write_bytes(b"half a sh")
        raise OSError(28, "No space left on device")

    (tmp_path / "sheet.png").write_bytes(b"the old one")
    monkeypatch.setattr(Image.Image, "save", full_disk)
    status, _, err = run_tool(capsys, "--refer_data_root", toy, "-j", 0, "--pictures", tmp_path / "sheet.png")
    assert status == 2 and "sheet.png cannot be written: [Errno 28] No space left" in err and err.count("\n") == 1
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"the old one"]


def test_no_sheet_without_a_sound_ref(data, tmp_path, capsys):
    data.refs = [None]
    data.save()
    status, out, _ = run_tool(capsys, "--refer_data_root", data.root, "-j", 0, "--pictures", tmp_path / "sheet.png")
    assert status == 1 and "no ref is sound enough to be drawn\n" in out and not (tmp_path / "sheet.png").exists()


# All in one pass

def damage_much(data: Dataset) -> Counter:
    """Damages many entries and files, and says what must be found; several faults meet in refs 8 and 9."""
    for number in (0, 1, 2):
        put(data.refs[number], ann_id=1000 + number)
    put(data.refs[4], sentences=[])
    put(data.refs[8], ann_id=2000, image_id=2000, category_id=2000, sentences=[{"sent_id": 8, "raw": "", "tokens": []}])
    put(data.refs[9], sentences=[])
    data.annotations[9]["segmentation"] = [SQUARE[:5]]  # of a ref that is left out
    data.refs += [{**data.refs[20]}, None]
    data.annotations[30]["segmentation"] = "x"
    data.annotations[31]["segmentation"] = [[-9, 1, 5, 1, 5, 9]]
    for name in ("00001", "00005", "00012", "00013", "00014", "00015", "00016"):
        (data.images / f"{name}.jpg").unlink()
    cut(data.images / "00020.jpg", 0.5)
    return Counter({
        "malformed entry": 1, "repeated id": 1, "unknown annotation": 4, "unknown image": 1, "unknown category": 1,
        "no sentence": 2, "empty sentence": 1, "malformed segmentation": 2, "polygon outside its image": 1,
        "missing image": 7, "broken image": 1})


@pytest.mark.parametrize("workers", [0, 2])
def test_everything_is_reported_in_one_pass(data, workers):
    expected = damage_much(data)
    assert count(data.findings(workers=workers), True) == expected


def test_the_index_that_remains_is_usable(data):
    damage_much(data)
    data.save()
    index, refused = read_index(data.root, "rrsisd", "unc")
    assert set(index.Refs) == set(range(40)) - {0, 1, 2, 4, 8, 9}
    assert len(index.data["refs"]) == 42 and len(refused) == 10
    for ref in index.loadRefs(index.getRefIds()):
        assert index.image_path(ref) and index.getRefBox(ref) and ref["sentences"][0]["raw"]
        assert index.refToAnn[ref["ref_id"]] and index.Cats[ref["category_id"]]
    assert summarize(index)["refs"] == 34 and summarize(index)["refs_in_file"] == 42


def test_refer_says_the_same_of_the_first_fault(data):
    damage_much(data)
    data.save()
    with pytest.raises(UserError) as caught:
        REFER(data.root, "rrsisd", "unc")
    assert str(caught.value) == read_index(data.root, "rrsisd", "unc")[1][0].message


def test_refer_refuses_an_unlisted_category(data):
    put(data.refs[5], category_id=99)
    data.save()
    with pytest.raises(UserError, match=r"ref 5 points to category 99, which .*instances.json lacks \(so for 1 of 40"):
        REFER(data.root, "rrsisd", "unc")


def test_each_image_is_read_once_and_only_if_asked(data, monkeypatch):
    read = []
    monkeypatch.setattr("refer.check_files.open_image", lambda path: read.append(path) or open_image(path))
    data.findings()
    assert len(read) == len(set(read)) == 20
    (data.images / "00003.jpg").unlink()
    assert not count(data.findings(read_images=False), True) and len(read) == 20


def test_images_and_annotations_without_refs_do_not_matter(data):
    data.image_entries.append({"id": 99, "file_name": "absent.jpg", "height": 64, "width": 64})
    data.annotations.append({"id": 99, "image_id": 99, "categories_id": 0, "segmentation": "x"})
    assert not count(data.findings(), True)


def die(path: object) -> None:
    os._exit(9)


def test_a_worker_that_dies_is_a_user_error(data, monkeypatch):
    monkeypatch.setattr("refer.check_files.open_image", die)
    with pytest.raises(UserError, match="A worker process died"):
        data.findings(workers=1)


# The command

def run_tool(capsys, *flags: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command, run in this process."""
    try:
        status = check_dataset.main([*map(str, flags)])
    except SystemExit as end:
        status = end.code
    return status, *capsys.readouterr()


def test_a_sound_data_set(toy, capsys):
    status, out, err = run_tool(capsys, "--refer_data_root", toy, "--dataset", "rrsisd", "-j", 0)
    assert (status, err) == (0, "")
    assert "0 faults, 60 notes\n" in out and "FAULT" not in out
    assert "rrsisd (unc): 40 refs, 40 sentences, 20 images\n" in out
    assert "    train: 32 refs, 32 sentences, 16 images; published: 12,181\n" in out
    assert "note: not 800×800, 20 (a known quirk of RRSIS-D" in out and "    … and 15 more\n" in out
    assert "published: 17,402 refs in all; this is a part" in out and "no refs: Expressway-Service-area, " in out


def test_the_published_counts_are_recognised(toy, capsys, monkeypatch):
    monkeypatch.setitem(check.PUBLISHED_REFS, ("rrsisd", "unc"), {"train": 32, "val": 4, "test": 4})
    assert "published: 40 refs in all; this is the same\n" in run_tool(capsys, "--refer_data_root", toy, "-j", 0)[1]


def test_faults_are_printed_and_counted(data, capsys):
    expected = damage_much(data)
    data.save()
    status, out, err = run_tool(capsys, "--refer_data_root", data.root, "-j", 0, "--examples", 2)
    assert (status, err) == (1, "")
    for kind, number in expected.items():
        assert f"FAULT: {kind}, {number} ({FAULTS[kind]})\n" in out
    assert f"    image 1: there is no file {data.images / '00001.jpg'}\n" in out and "    … and 5 more\n" in out
    assert "; 8 refs are left out for their faults\n" in out
    assert f"{expected.total()} faults, " in out


def test_json_holds_what_is_printed(data, capsys):
    (data.images / "00003.jpg").unlink()
    segment(data, [])
    data.save()
    path = data.root / "made" / "result.json"
    status, out, _ = run_tool(capsys, "--refer_data_root", data.root, "-j", 0, "--json", path, "--examples", 1)
    result = json.loads(path.read_text())
    assert status == 1 and "1 faults, 61 notes" in out
    assert result["faults"] == {"missing image": {"count": 1, "meaning": FAULTS["missing image"], "examples": [
        f"image 3: there is no file {data.images / '00003.jpg'}"]}}
    assert {kind: entry["count"] for kind, entry in result["notes"].items()} == {**USUAL_NOTES, "empty mask": 1}
    assert all(len(entry["examples"]) == 1 for entry in result["notes"].values())
    assert (result["dataset"], result["splitBy"], result["images_checked"]) == ("rrsisd", "unc", True)
    summary = result["summary"]
    assert summary["splits"]["val"] == {"refs": 4, "sentences": 4, "images": 2}
    assert sum(summary["categories"].values()) == summary["refs"] == summary["refs_in_file"] == 40
    assert summary["published"] == {"train": 12_181, "val": 1_740, "test": 3_481}


def test_without_images(data, capsys):
    shutil.rmtree(data.root / "images")
    status, out, err = run_tool(capsys, "--refer_data_root", data.root, "-j", 0, "--no_images")
    assert (status, err) == (0, "") and "0 faults, 60 notes; images were not looked at\n" in out


@pytest.mark.parametrize(("damage", "flags", "message"), [
    (lambda d: None, ["--dataset", "coco"], "Unknown data set 'coco'"),
    (lambda d: None, ["--splitBy", "umd"], "rrsisd is not split by 'umd'"),
    (lambda d: None, ["--dataset", "refcoco"], "Missing the annotation folder of refcoco"),
    (lambda d: None, ["--examples", "-1"], "--examples: -1 is not a whole number of at least 0"),
    (lambda d: None, ["-j", "-1"], "--workers: -1 is not a whole number of at least 0"),
    (lambda d: None, ["--json", "/proc/none/r.json"], "/proc/none/r.json cannot be written"),
    (lambda d: None, ["--pictures", "/proc/none/s.png"], "/proc/none/s.png cannot be written"),
    (lambda d: None, ["--pictures", TOOL / "s.png"], "check_dataset.py/s.png cannot be written"),  # below a file
    (lambda d: None, ["--pictures", "/"], "/ cannot be written"),
    (lambda d: None, ["--samples", 0], "--samples: 0 is not a whole number of at least 1"),
    (lambda d: None, ["--pictures", "/proc/none/s.png", "--split", "vol"], "The split 'vol' of rrsisd"),
    (lambda d: cut(d.root / "rrsisd/refs(unc).p", 0.5), [], "is not a complete pickle"),
    (lambda d: cut(d.root / "rrsisd/instances.json", 0.5), [], "is not valid JSON"),
    (lambda d: (d.root / "rrsisd/refs(unc).p").write_bytes(pickle.dumps({})), [], "must hold a list of ref entries"),
    (lambda d: (d.root / "rrsisd/refs(unc).p").write_bytes(pickle.dumps([])), [], "holds no refs"),
    (lambda d: shutil.rmtree(d.root / "images"), [], "Missing the images of rrsisd: there is no folder"),
    (lambda d: shutil.rmtree(d.root / "rrsisd"), [], "Missing the annotation folder of rrsisd"),
])
def test_a_users_mistake_is_one_line(data, capsys, damage, flags, message):
    damage(data)
    status, _, err = run_tool(capsys, "--refer_data_root", data.root, "-j", 0, *flags)
    assert status == 2
    assert err.startswith("check_dataset.py: ") and message in err and err.count("\n") == 1


def test_refs_that_are_all_faulty_are_no_traceback(data, capsys):
    data.refs = [None, {"ref_id": 1}]
    data.save()
    status, out, _ = run_tool(capsys, "--refer_data_root", data.root, "-j", 0)
    assert status == 1 and "FAULT: malformed entry, 6 " in out and "FAULT: empty split, 3 " in out


@pytest.mark.slow
def test_as_a_command(data):
    (data.images / "00003.jpg").unlink()
    put(data.image_entries[5], file_name="\ud800.jpg")  # no encoding can print it
    data.save()
    done = subprocess.run([sys.executable, str(TOOL), "--refer_data_root", str(data.root), "-j", "1"],
                          cwd=data.root, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
                          timeout=120)
    assert (done.returncode, done.stderr) == (1, "")
    assert "FAULT: missing image, 1 " in done.stdout and "but is '\\ud800.jpg'" in done.stdout
    assert "4 faults, 59 notes\n" in done.stdout  # two refs lose their image
