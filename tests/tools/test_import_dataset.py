"""tools/import_dataset.py: every kind of source, what is refused, and that nothing half-written is left."""
import base64
import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from lib.imagery.sources import open_source
from refer import REFER
from refer.importers.splits import deal, group_pictures
from tests.refer.own_sets import HEIGHT, SENTENCES, WIDTH, import_to, mask_of, write_picture, write_rows, write_source
from tools import import_dataset
from utils import UserError

TO_TRAIN = ("--split", 1, 0, 0)
BOX = [1, 1, 3, 2]
POLYGON = [1, 1, 4, 1, 4, 3, 1, 3]


def refused(capsys, *words: object) -> tuple[str, list[str]]:
    """The line on stderr and the bad rows of an import that ends with status 2."""
    with pytest.raises(SystemExit) as caught:
        import_dataset.main([str(word) for word in words])
    said = capsys.readouterr()
    assert caught.value.code == 2 and said.err.count("\n") == 1, said
    return said.err, re.findall(r"^bad: (.*)$", said.out, re.M)


def bad_rows(capsys, *words: object) -> list[str]:
    """The bad rows that --check_only lists."""
    assert import_dataset.main([*map(str, words), "--check_only"]) == 2
    return re.findall(r"^bad: (.*)$", capsys.readouterr().out, re.M)


def the_mask(folder: Path) -> np.ndarray:
    """The mask of the only ref."""
    index = REFER(".", str(folder))
    ref_id, = index.Refs
    return index.getMask(ref_id)["mask"]


def box_mask(x: int, y: int, width: int, height: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y:y + height, x:x + width] = 1
    return mask


# Tables

def test_a_table_of_pictures_masks_and_sentences(tmp_path, capsys):
    out = import_to(tmp_path / "roofs", write_source(tmp_path / "source"), "--sheet", tmp_path / "sheet.png")
    index = REFER(".", str(out))
    assert index.split_counts() == {"train": 8, "val": 1, "test": 1}
    for ref in index.Refs.values():
        assert [sentence["raw"] for sentence in ref["sentences"]] == list(SENTENCES)
        np.testing.assert_array_equal(index.getMask(ref)["mask"], mask_of(int(Path(index.image_path(ref)).stem)))
        assert Path(index.image_path(ref)).is_symlink()
    said = capsys.readouterr().out
    assert "20 rows" in said and "train: 8 refs, 16 sentences, 8 images" in said and f"--dataset {out}" in said
    assert Image.open(tmp_path / "sheet.png").width > 500
    assert sorted(path.name for path in out.iterdir()) == [
        "dataset.json", "images", "roofs_test.jsonl", "roofs_train.jsonl", "roofs_val.jsonl"]


def test_copied_it_does_not_need_its_source(tmp_path):
    out = import_to(tmp_path / "roofs", write_source(tmp_path / "source"), "--copy")
    (tmp_path / "source").rename(tmp_path / "gone")
    index = REFER(".", str(out))
    assert all(Image.open(index.image_path(ref)).size == (WIDTH, HEIGHT) for ref in index.Refs)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_seed_gives_the_same_splits(tmp_path, seed):
    source = write_source(tmp_path / "source")
    a, b = (import_to(tmp_path / name, source, "--seed", seed) / f"{name}_val.jsonl" for name in ("a", "b"))
    assert a.read_text() == b.read_text()


@pytest.mark.parametrize(("suffix", "separator", "encoding"), [
    (".csv", ";", "utf-8"), (".tsv", "\t", "utf-8"), (".csv", ",", "utf-8-sig")])
def test_separators_other_headers_and_paths_that_are_not_ascii(tmp_path, suffix, separator, encoding):
    write_picture(tmp_path / "Dächer/Straße 1.png")
    Image.fromarray(mask_of(0)).save(tmp_path / "Dächer/größe.png")
    path = tmp_path / f"refs{suffix}"
    rows = [["Foto", "Maske", "Satz", "Klasse", "Nr"],
            ["Dächer\\Straße 1.png", "Dächer/größe.png", "das weiße Dach, links; oben\tda", "Dach", "7"]]
    with open(path, "w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=separator).writerows(rows)
    out = import_to(tmp_path / "own", path, "--columns", "image=Foto,mask=Maske,sentence=Satz,category=Klasse,id=Nr",
                    *TO_TRAIN)
    index = REFER(".", str(out))
    assert index.Refs[7]["sentences"][0]["raw"] == "das weiße Dach, links; oben da" and index.Cats == {0: "Dach"}
    np.testing.assert_array_equal(the_mask(out), mask_of(0))


def test_another_encoding_is_refused_with_how_to_save_it(tmp_path, capsys):
    (tmp_path / "refs.csv").write_bytes("image,mask,sentence\nstraße.png,m.png,x\n".encode("latin1"))
    line, _ = refused(capsys, tmp_path / "refs.csv", "--out", tmp_path / "own")
    assert "refs.csv, line 2 is not UTF-8: save the file as UTF-8" in line and "iconv" in line


@pytest.mark.parametrize(("words", "said"), [
    (("--columns", "image=Foto"), "has no such column, but has image, mask, sentence"),
    (("--columns", "picture=image"), "'picture' is none of image, mask"), (("--group", "scene"), "--group scene: "),
    (("--out", "rrsisd"), "is no name for a data set of your own"), (("--split", 0, 0, 0), "leaves no picture"),
    (("--kind", "layer"), "give --raster"), (("--bands", 1, 2), "takes one number or three")])
def test_wrong_flags(tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    source = write_source(tmp_path / "source", 3)
    line, _ = refused(capsys, source, *(() if "--out" in words else ("--out", "own")), *words)
    assert said in line


# Masks

@pytest.mark.parametrize(("name", "picture", "flags"), [
    ("255.png", Image.fromarray(mask_of(1) * np.uint8(255)), ()), ("1.png", Image.fromarray(mask_of(1)), ()),
    ("bit.png", Image.fromarray(mask_of(1) * np.uint8(255)).convert("1"), ()),
    ("palette.png", Image.fromarray(mask_of(1)).convert("P"), ()),
    ("rgba.png", Image.merge("RGBA", [Image.fromarray(mask_of(1) * np.uint8(9))] * 3
                             + [Image.new("L", (WIDTH, HEIGHT), 255)]), ()),
    ("16.tif", Image.fromarray(mask_of(1).astype(np.uint16) * 40_000), ()),
    ("labels.tif", Image.fromarray((mask_of(1) + (1 - mask_of(1)) * 7).astype(np.uint16) * 1000), ("--object_value",
                                                                                                  1000)),
    ("grey.png", Image.fromarray(mask_of(1) * np.uint8(99) + np.uint8(100)), ("--object_above", 127))])
def test_mask_pictures_of_every_kind(tmp_path, name, picture, flags):
    write_picture(tmp_path / "a.png")
    picture.save(tmp_path / name)
    source = write_rows(tmp_path, {"image": "a.png", "mask": name, "sentence": "x"})
    np.testing.assert_array_equal(the_mask(import_to(tmp_path / "own", source, *TO_TRAIN, *flags)), mask_of(1))


def test_instances_of_one_map_are_rows_of_their_number(tmp_path, capsys):
    write_picture(tmp_path / "a.png")
    Image.fromarray(box_mask(1, 1, 3, 2) * np.uint16(300) + box_mask(6, 1, 2, 5) * np.uint16(65_000)).save(
        tmp_path / "map.png")
    rows = [{"image": "a.png", "mask": "map.png", "instance": number, "sentence": f"roof {number}"}
            for number in (300, "65000")]
    index = REFER(".", str(import_to(tmp_path / "own", write_rows(tmp_path, *rows), *TO_TRAIN)))
    for ref_id, box in ((0, (1, 1, 3, 2)), (1, (6, 1, 2, 5))):
        np.testing.assert_array_equal(index.getMask(ref_id)["mask"], box_mask(*box))
    assert bad_rows(capsys, write_rows(tmp_path, {**rows[0], "instance": 5}, {**rows[0], "instance": "x"})) == [
        f"{tmp_path}/refs.jsonl, line 2: its instance must be the number of an object in its mask, but is 'x'",
        f"{tmp_path}/refs.jsonl, line 1: its mask is empty: {tmp_path}/map.png has no pixel of the object"]


@pytest.mark.parametrize("mask", [
    BOX, POLYGON, [POLYGON], [[1, 1], [4, 1], [4, 3], [1, 3]], json.dumps([POLYGON[:6], [1, 1, 4, 3, 1, 3]]),
    {"size": [HEIGHT, WIDTH], "counts": coco_mask.encode(np.asfortranarray(box_mask(*BOX)))["counts"].decode()}])
def test_masks_in_a_column(tmp_path, mask):
    write_picture(tmp_path / "a.png")
    source = write_rows(tmp_path, {"image": "a.png", "mask": mask, "sentence": "x"})
    np.testing.assert_array_equal(the_mask(import_to(tmp_path / "own", source, *TO_TRAIN)), box_mask(*BOX))


def test_a_sentence_may_refer_to_nothing_if_its_row_says_so(tmp_path):
    write_picture(tmp_path / "a.png")
    source = write_rows(tmp_path, {"image": "a.png", "mask": "", "sentence": "a ship", "no_target": True})
    index = REFER(".", str(import_to(tmp_path / "own", source, *TO_TRAIN)))
    assert index.Refs[0]["no_target"] and not index.getMask(0)["mask"].any()


# Bad rows

def bad_source(folder: Path) -> Path:
    """Eleven bad rows, and a good one in line 2."""
    for name, size in (("a", (WIDTH, HEIGHT)), ("other", (9, 5))):
        write_picture(folder / f"{name}.png", size=size)
    Image.fromarray(mask_of(0)).save(folder / "m.png")
    Image.fromarray(0 * mask_of(0)).save(folder / "empty.png")
    Image.fromarray(mask_of(0) * np.uint8(255)).convert("RGB").save(folder / "m.jpg")
    Image.fromarray(np.full((HEIGHT, WIDTH), 9, np.uint16)).save(folder / "deep.png")
    (folder / "broken.png").write_bytes((folder / "m.png").read_bytes()[:40])
    (folder / "program.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 8\n")
    (folder / "refs.csv").write_text("""image,mask,sentence
a.png,m.png,good
gone.png,m.png,x
other.png,m.png,x
a.png,gone.png,x
a.png,empty.png,x
a.png,m.png,
a.png,m.png,"one, two",x
a.png,m.jpg,x
deep.png,m.png,x
a.png,broken.png,x
program.png,m.png,x
a.png,"[1, 1, 40, 1, 4, 3]",x
""")
    return folder / "refs.csv"


def test_all_bad_rows_are_listed_in_one_pass_and_nothing_is_written(tmp_path, capsys):
    source = bad_source(tmp_path / "source")
    before = sorted(tmp_path.rglob("*"))
    rows = bad_rows(capsys, source, "--out", tmp_path / "own")
    for line, words in ((3, "its picture {}/gone.png is missing"),
                        (4, "its mask {0}/m.png is 12×8, its picture 9×5"), (5, "its mask {}/gone.png is missing"),
                        (6, "its mask is empty: {}/empty.png"), (7, "its sentence (column sentence) is empty"),
                        (8, "it has 4 cells, but the table has 3 columns"), (9, "is a JPEG, whose values are blurred"),
                        (10, "has more than 8 bits a band"), (11, "its mask {}/broken.png cannot be read"),
                        (12, "its picture {}/program.png cannot be read (it is none of JPEG"),
                        (13, "its polygon reaches 28 px beyond its picture, which is 12×8")):
        row, = (row for row in rows if row.startswith(f"{source}, line {line}: "))
        assert words.format(source.parent) in row
    assert len(rows) == 11 and sorted(tmp_path.rglob("*")) == before


def test_bad_rows_stop_the_import_unless_they_are_to_be_left_out(tmp_path, capsys):
    source = bad_source(tmp_path / "source")
    line, rows = refused(capsys, source, "--out", tmp_path / "own", *TO_TRAIN)
    assert "11 of 12 rows are bad, so nothing is written" in line and len(rows) == 11
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    index = REFER(".", str(import_to(tmp_path / "own", source, *TO_TRAIN, "--skip_bad")))
    assert [ref["sentences"][0]["raw"] for ref in index.Refs.values()] == ["good"]


def test_of_many_bad_rows_twenty_are_shown_and_the_rest_counted(tmp_path, capsys):
    source = write_rows(tmp_path, *[{"image": "gone.png", "mask": BOX, "sentence": f"x {n}"} for n in range(30)])
    _, rows = refused(capsys, source, "--out", tmp_path / "own")
    assert len(rows) == 21 and rows[-1] == "… and 10 more (--check_only lists all)"


def test_an_existing_folder_is_not_touched(tmp_path, capsys):
    (tmp_path / "own").mkdir()
    line, _ = refused(capsys, write_source(tmp_path / "source", 3), "--out", tmp_path / "own")
    assert "own exists already: give another name, or remove it first" in line
    assert not list((tmp_path / "own").iterdir())


def test_a_picture_that_viewers_turn_is_named_as_such(tmp_path, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.jpg", exif=exif)
    Image.fromarray(np.ascontiguousarray(mask_of(0).T)).save(tmp_path / "m.png")
    row, = bad_rows(capsys, write_rows(tmp_path, {"image": "a.jpg", "mask": "m.png", "sentence": "x"}))
    assert "is 8×12, its picture 12×8; its EXIF data say that it is to be turned" in row


def test_label_maps_that_were_not_said_to_be_any_are_noted(tmp_path, capsys):
    write_picture(tmp_path / "a.png")
    Image.fromarray(np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)).save(tmp_path / "m.png")
    source = write_rows(tmp_path, {"image": "a.png", "mask": "m.png", "sentence": "word " * 30})
    import_to(tmp_path / "own", source, *TO_TRAIN)
    said = capsys.readouterr().out
    assert "note: masks of more than two values" in said
    assert f"{source}, line 1: beyond it " + " ".join(["word"] * 12) in said


# Splits

def test_own_splits_are_kept_and_a_picture_belongs_to_one(tmp_path, capsys):
    for number in range(3):
        write_picture(tmp_path / f"{number}.png", number)
    rows = [{"image": f"{number}.png", "mask": BOX, "sentence": "x", "split": split}
            for number, split in enumerate(("Training", "validation", "test"))]
    index = REFER(".", str(import_to(tmp_path / "own", write_rows(tmp_path, *rows))))
    assert [ref["split"] for ref in index.Refs.values()] == ["train", "val", "test"]
    (tmp_path / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    rows += [{**rows[0], "image": "copy.png", "split": "test"}, {**rows[0], "split": "trian"}]
    found = bad_rows(capsys, write_rows(tmp_path, *rows))
    assert "line 5: its split 'trian' is none of train, val, test" in found[0]
    assert f"line 4: its picture {tmp_path}/copy.png is in the split test, but in train at" in found[1]


def test_pictures_of_one_group_and_equal_ones_stay_together(tmp_path, capsys):
    rows = []
    for number in range(12):
        write_picture(tmp_path / f"{number}.png", number % 11)   # the last is the first
        rows += [{"image": f"{number}.png", "mask": BOX, "sentence": s, "scene": number // 3} for s in SENTENCES]
    out = import_to(tmp_path / "own", write_rows(tmp_path, *rows), "--group", "scene", "--split", 0.4, 0.3, 0.3)
    assert f"{tmp_path}/11.png is the same as {tmp_path}/0.png" in capsys.readouterr().out
    index = REFER(".", str(out))
    split_of = {int(Path(index.image_path(ref)).stem): ref["split"] for ref in index.Refs.values()}
    assert len(split_of) == 12 and set(split_of.values()) == {"train", "val", "test"}
    assert len({split_of[number] for number in (0, 1, 2, 9, 10, 11)}) == 1
    assert len({split_of[number] for number in (3, 4, 5)}) == len({split_of[number] for number in (6, 7, 8)}) == 1


@pytest.mark.parametrize(("pictures", "shares", "counts"), [
    (8, (0.8, 0.1, 0.1), (6, 1, 1)), (3, (0.8, 0.1, 0.1), (1, 1, 1)), (100, (0.8, 0.1, 0.1), (80, 10, 10)),
    (5, (1, 0, 0), (5, 0, 0)), (10, (0.5, 0.5, 0), (5, 5, 0))])
def test_shares_of_pictures(pictures, shares, counts):
    split_of = deal([[f"{number}.png"] for number in range(pictures)], shares, seed=3)
    assert tuple(list(split_of.values()).count(name) for name in ("train", "val", "test")) == counts


def test_too_few_pictures_for_the_splits(tmp_path, capsys):
    with pytest.raises(UserError, match="2 pictures, or groups of pictures, cannot be dealt out to 3 splits"):
        deal([["a"], ["b"]], (0.8, 0.1, 0.1), seed=0)
    line, _ = refused(capsys, write_source(tmp_path / "source", 2), "--out", tmp_path / "own")
    assert "--split 1 0 0 puts all in train" in line and not (tmp_path / "own").exists()


def test_groups_that_share_a_picture_are_one():
    groups = group_pictures({"a": {"1"}, "b": {"1", "2"}, "c": {"2"}, "d": set(), "e": set()}, {"e": "d"})
    assert sorted(map(sorted, groups)) == [["a", "b", "c"], ["d", "e"]]


# COCO, LabelStudio, CVAT

def coco(folder: Path, *annotations: dict, name: str = "refs.json", images: str = "images", number: int = 1) -> Path:
    """A file of one picture with these annotations."""
    write_picture(folder / images / f"{number}.png", number)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({
        "images": [{"id": number, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 3, "name": "roof"}],
        "annotations": [{"id": 10 * number + place, "image_id": number, "category_id": 3, "segmentation": [POLYGON],
                         **fields} for place, fields in enumerate(annotations)]}))
    return folder / name


@pytest.mark.parametrize("fields", [
    {"caption": "a roof"}, {"sentences": ["a roof"]}, {"sentences": [{"raw": "a roof", "sent_id": 4}]},
    {"referring_expressions": ["a roof"]}, {"attributes": {"occluded": False, "caption": "a roof"}}])
def test_cocos_json_with_sentences_in_several_fields(tmp_path, fields, capsys):
    out = import_to(tmp_path / "own", coco(tmp_path, fields, {}), *TO_TRAIN)
    index = REFER(".", str(out))
    assert index.Refs[10]["sentences"][0]["raw"] == "a roof" and index.Cats == {0: "roof"}
    np.testing.assert_array_equal(the_mask(out), box_mask(*BOX))
    assert "annotations without a sentence, left out: 1" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_sentences_in_a_file_of_their_own(tmp_path, capsys, suffix):
    source, path = coco(tmp_path, {}, {}), tmp_path / f"said.{suffix}"
    path.write_text(json.dumps({"10": ["a roof", "it"], "11": "b"}) if suffix == "json" else
                    "id,sentence\n10,a roof\n10,it\n11,b\n")
    index = REFER(".", str(import_to(tmp_path / "own", source, "--sentences", path, *TO_TRAIN)))
    assert [[s["raw"] for s in ref["sentences"]] for ref in index.Refs.values()] == [["a roof", "it"], ["b"]]
    line, _ = refused(capsys, source, "--out", tmp_path / "other")
    assert "no annotation has a sentence; they have category_id, id, image_id, segmentation" in line


def test_an_export_of_cvat_has_pictures_in_folders_and_splits_in_names(tmp_path):
    for number, split in enumerate(("train", "val"), start=1):
        coco(tmp_path, {"attributes": {"text": "x"}}, name=f"annotations/instances_{split}.json",
             images="images/default", number=number)
    index = REFER(".", str(import_to(tmp_path / "own", tmp_path)))
    assert [ref["split"] for ref in index.Refs.values()] == ["train", "val"]


def test_an_export_of_labelstudio_names_pictures_of_its_server(tmp_path):
    source = coco(tmp_path, {}, name="result.json")
    content = json.loads(source.read_text())
    content["images"][0]["file_name"] = "../../label-studio/data/media/upload/1/1.png"
    source.write_text(json.dumps(content))
    (tmp_path / "said.json").write_text('{"10": "a roof"}')
    index = REFER(".", str(import_to(tmp_path / "own", source, "--sentences", tmp_path / "said.json", *TO_TRAIN)))
    assert Path(index.image_path(10)).resolve() == tmp_path / "images/1.png"


def test_bad_annotations_are_named(tmp_path, capsys):
    source = coco(tmp_path, *({"caption": "x", **fields} for fields in (
        {"image_id": 9}, {"segmentation": []}, {"segmentation": [[1, 1, 2, 2]]}, {"segmentation": {"size": [3, 3],
                                                                                                    "counts": [9]}})))
    rows = dict(row.removeprefix(f"{source}, annotation ").split(": ", 1) for row in bad_rows(capsys, source))
    assert rows == {"10": "its image_id 9 is that of no image", "11": "it has no segmentation",
                    "12": "its polygon must have at least 3 points, each an x and a y",
                    "13": "its mask is 3×3, its picture 12×8"}
    write_picture(tmp_path / "images/1.png", size=(24, 16))
    assert "is 24×16, but was 12×8 when its mask was drawn" in bad_rows(capsys, source)[-1]


# labelme

def labelme(folder: Path, *shapes: dict, name: str = "a") -> Path:
    write_picture(folder / f"{name}.png")
    (folder / f"{name}.json").write_text(json.dumps({
        "version": "5.4", "imagePath": f"..\\there\\{name}.png", "imageData": None, "imageWidth": WIDTH,
        "imageHeight": HEIGHT, "shapes": [{"label": "roof", "group_id": None, "shape_type": "polygon", "flags": {},
                                           "points": [[1, 1], [4, 1], [4, 3], [1, 3]], **shape} for shape in shapes]}))
    return folder


def test_a_folder_of_labelme(tmp_path):
    png = io.BytesIO()
    Image.fromarray(np.ones((2, 3), bool)).save(png, "PNG")
    labelme(tmp_path, {"description": "a roof\nit"}, {"description": "two", "group_id": 1},
            {"shape_type": "rectangle", "points": [[8, 6], [6, 4]], "group_id": 1},
            {"description": "drawn", "shape_type": "mask", "points": [[1, 1], [4, 3]],
             "mask": base64.b64encode(png.getvalue()).decode()},
            {"description": "round", "shape_type": "circle", "points": [[6, 4], [6, 1]]}, {"label": "mute"})
    index = REFER(".", str(import_to(tmp_path / "own", tmp_path, *TO_TRAIN)))
    assert [[s["raw"] for s in ref["sentences"]] for ref in index.Refs.values()] == [
        ["a roof", "it"], ["two"], ["drawn"], ["round"]]
    masks = {ref["sentences"][0]["raw"]: index.getMask(ref)["mask"] for ref in index.Refs.values()}
    np.testing.assert_array_equal(masks["a roof"], box_mask(*BOX))
    np.testing.assert_array_equal(masks["drawn"], box_mask(*BOX))
    np.testing.assert_array_equal(masks["two"], box_mask(*BOX) | box_mask(6, 4, 2, 2))
    assert masks["round"][4, 6] and 24 <= masks["round"].sum() <= 30, "the area of a circle of radius 3"
    assert list(index.Cats.values()) == ["roof"]


def test_without_descriptions_the_labels_are_the_sentences(tmp_path, capsys):
    index = REFER(".", str(import_to(tmp_path / "own", labelme(tmp_path, {"label": "the roof"}), *TO_TRAIN)))
    assert index.Refs[0]["sentences"][0]["raw"] == "the roof"
    assert "so the labels are the sentences" in capsys.readouterr().out
    assert "it is a line, which covers no area" in bad_rows(capsys, labelme(tmp_path / "x", {"shape_type": "line"}))[0]


def test_what_is_of_no_kind_is_refused(tmp_path, capsys):
    (tmp_path / "x.json").write_text("{}")
    for source, words in ((tmp_path / "x.json", "is of no kind that can be imported: table: CSV"),
                          (tmp_path / "none.csv", "There is no"), (tmp_path, "is of no kind"),
                          (write_source(tmp_path / "csv", 1).parent, "but holds refs.csv: give that file")):
        line, _ = refused(capsys, source, "--out", tmp_path / "own")
        assert words in line


# Layers of a map

ORIGIN, PIXEL_M = (500_000, 5_800_000), 0.5


@pytest.fixture
def scene(tmp_path) -> Path:
    """A raster of 40×24 pixels of half a metre, of four bands of 16 bits."""
    rasterio = pytest.importorskip("rasterio")
    values = np.stack([np.tile(np.arange(40, dtype=np.uint16) * 100 + 1000, (24, 1))] * 4)
    with rasterio.open(tmp_path / "scene.tif", "w", driver="GTiff", width=40, height=24, count=4, dtype="uint16",
                       crs="EPSG:32633", transform=rasterio.transform.from_origin(*ORIGIN, PIXEL_M, PIXEL_M)) as file:
        file.write(values)
    return tmp_path / "scene.tif"


def square(left: int, top: int, side: int, hole: bool = False) -> list:
    """A polygon's rings in metres, of a square of so many pixels."""
    def ring(inset: int) -> list:
        low, high = inset, side - inset
        return [[ORIGIN[0] + PIXEL_M * (left + x), ORIGIN[1] - PIXEL_M * (top + y)]
                for x, y in ((low, low), (high, low), (high, high), (low, high), (low, low))]
    return [ring(0), ring(1)] if hole else [ring(0)]


def layer(path: Path, *features: tuple[dict, str]) -> Path:
    path.write_text(json.dumps({
        "type": "FeatureCollection", "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}},
        "features": [{"type": "Feature", "geometry": geometry, "properties": {"text": text, "class": "roof"}}
                     for geometry, text in features]}))
    return path


def polygon(*where: int, hole: bool = False) -> dict:
    return {"type": "Polygon", "coordinates": square(*where, hole=hole)}


def test_a_layer_over_a_raster_is_cut_into_tiles(tmp_path, scene, capsys):
    source = layer(tmp_path / "roofs.geojson", (polygon(2, 2, 4, hole=True), "a roof with a yard"),
                   ({"type": "MultiPolygon", "coordinates": [square(17, 1, 2), square(20, 20, 3)]}, "two parts"),
                   (polygon(13, 1, 6), "more in the second tile"), (polygon(34, 18, 4), "in the corner"),
                   (polygon(100, 100, 4), "elsewhere"), (polygon(1, 1, 2), ""))
    out = import_to(tmp_path / "own", source, "--raster", scene, "--tile", 16, "--columns", "category=class",
                    "--split", 1, 0, 0)
    index = REFER(".", str(out))
    found = {ref["sentences"][0]["raw"]: (Path(index.image_path(ref)).name, index.getMask(ref)["mask"])
             for ref in index.Refs.values()}
    assert {text: name for text, (name, _) in found.items()} == {
        "a roof with a yard": "scene_000000_000000.png", "two parts": "scene_000016_000016.png",
        "more in the second tile": "scene_000000_000016.png", "in the corner": "scene_000016_000032.png"}
    expected = np.zeros((16, 16), np.uint8)
    expected[2:6, 2:6], expected[3:5, 3:5] = 1, 0
    np.testing.assert_array_equal(found["a roof with a yard"][1], expected)
    assert found["in the corner"][1].sum() == 16 and found["in the corner"][1][2:6, 2:6].all()
    corner = np.asarray(Image.open(index.image_path(next(iter(index.Refs.values()))["ref_id"])))
    assert corner.shape == (16, 16, 3) and corner.dtype == np.uint8
    assert list(index.Cats.values()) == ["roof"]
    said = capsys.readouterr().out
    assert "features beside the rasters, left out: 1" in said and "features without a sentence, left out: 1" in said
    pixels = np.asarray(Image.open(out / "images/scene_000016_000032.png"))
    assert not pixels[8:].any() and not pixels[:, 8:].any(), "black beyond the border"
    assert pixels[0, 7, 0] == 255 and 200 < pixels[0, 0, 0] < 255, "the 98th percentile is white"
    seen, _ = open_source(scene).crop((32, 16, 40, 24))
    np.testing.assert_array_equal(pixels[:8, :8], np.asarray(seen), "a network trains on the colours that it is shown")
    assert not list(out.glob(".*"))


def test_tiles_of_one_raster_stay_together_if_asked(tmp_path, scene):
    rasterio = pytest.importorskip("rasterio")
    features, rasters = [], [scene]
    for number in range(1, 3):   # each further raster lies east of the one before
        with rasterio.open(scene) as file, rasterio.open(
                tmp_path / f"scene{number}.tif", "w", **{**file.profile, "transform": rasterio.transform.from_origin(
                    ORIGIN[0] + 40 * PIXEL_M * number, ORIGIN[1], PIXEL_M, PIXEL_M)}) as written:
            written.write(np.roll(file.read(), 5 * number, axis=2))
            rasters.append(Path(written.name))
    for number in range(3):
        features += [(polygon(40 * number + left, 2, 4), f"roof {number} {left}") for left in (2, 20)]
    out = import_to(tmp_path / "own", layer(tmp_path / "a.geojson", *features), "--raster", *rasters, "--tile", 16,
                    "--group", "raster", "--split", 0.4, 0.3, 0.3)
    splits: dict[str, set[str]] = {}
    for ref in REFER(".", str(out)).Refs.values():
        splits.setdefault(ref["sentences"][0]["raw"].split()[1], set()).add(ref["split"])
    assert sorted(map(sorted, splits.values())) == [["test"], ["train"], ["val"]]


def test_a_layer_in_another_system_or_file_gives_the_same_masks(tmp_path, scene):
    rasterio, pyogrio = pytest.importorskip("rasterio"), pytest.importorskip("pyogrio")
    from rasterio.warp import transform_geom
    geometry = polygon(2, 2, 9, hole=True)
    masks = [the_mask(import_to(tmp_path / "a", layer(tmp_path / "a.geojson", (geometry, "x")), "--raster", scene,
                                *TO_TRAIN))]
    degrees = {"type": "FeatureCollection", "features": [
        {"type": "Feature", "properties": {"text": "x"},
         "geometry": transform_geom("EPSG:32633", "OGC:CRS84", geometry)}]}
    (tmp_path / "b.json").write_text(json.dumps(degrees))
    masks.append(the_mask(import_to(tmp_path / "b", tmp_path / "b.json", "--raster", scene, *TO_TRAIN)))
    meta, _, shapes, values = pyogrio.raw.read(str(tmp_path / "a.geojson"))
    pyogrio.raw.write(str(tmp_path / "c.gpkg"), shapes, values, meta["fields"], driver="GPKG", crs="EPSG:32633",
                      geometry_type="Polygon", layer="roofs")
    masks.append(the_mask(import_to(tmp_path / "c", tmp_path / "c.gpkg", "--raster", scene, *TO_TRAIN)))
    assert rasterio and masks[0].shape == (24, 40) and masks[0].sum() == 81 - 49
    for mask in masks[1:]:
        np.testing.assert_array_equal(mask, masks[0])


def test_bad_layers_and_rasters_are_named(tmp_path, scene, capsys):
    plain = tmp_path / "plain.png"
    write_picture(plain)
    far = layer(tmp_path / "far.geojson", (polygon(100, 100, 4), "x"))
    bad = layer(tmp_path / "bad.geojson", ({"type": "Point", "coordinates": [1, 2]}, "x"), (None, "x"),
                ({"type": "Polygon", "coordinates": [["x"]]}, "x"), (polygon(1, 1, 2), "x"))
    for words, said in (((far, "--raster", scene), "none of the 1 features"), ((far, "--raster", plain), "georefer"),
                        ((far, "--raster", far), "cannot be read"),
                        ((far, "--raster", "/vsimem/x"), "is no file"),
                        ((far, "--raster", scene, "--bands", 5), "has 4 bands")):
        line, _ = refused(capsys, *words, "--out", tmp_path / "own")
        assert said in line
    rows = bad_rows(capsys, bad, "--raster", scene)
    assert [row.split(": ")[1].split(" (")[0] for row in rows] == [
        "it is a Point, which covers no area", "it has no geometry",
        f"its geometry cannot be laid over {scene}"]


def test_where_rasterio_is_missing_its_installation_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    (tmp_path / "x.tif").write_bytes(b"II*\0")
    line, _ = refused(capsys, layer(tmp_path / "x.geojson"), "--raster", tmp_path / "x.tif", "--out", tmp_path / "own")
    assert "needs the package rasterio" in line and "pip install -r requirements-geo.txt" in line


def test_the_example_of_the_page_works(tmp_path, monkeypatch, capsys):
    """docs/datasets.md, "Your own": its Python makes a source, which its command imports."""
    page = Path(__file__).resolve().parents[2] / "docs/datasets.md"
    text = page.read_text().partition("## Your own")[2]
    monkeypatch.chdir(tmp_path)
    exec(compile(re.search(r"^```python\n(.*?)^```$", text, re.M | re.S)[1], page.name, "exec"), {})
    command = re.search(r"^python tools/import_dataset.py (.*)$", text, re.M)[1]
    assert import_dataset.main(command.split()) == 0
    assert REFER(".", "roofs").split_counts() == {"train": 4, "val": 1, "test": 1}


@pytest.mark.parametrize("content", [
    b"<OGRVRTDataSource><OGRVRTLayer name='x'><SrcDataSource>/etc/passwd</SrcDataSource></OGRVRTLayer>"
    b"</OGRVRTDataSource>", b"http://127.0.0.1:9/x.gpkg", b"", b"id,WKT\n1,POINT (1 1)\n"])
def test_what_is_no_geopackage_is_not_opened_under_its_name(tmp_path, scene, capsys, content):
    """The library would open what an OGR VRT names, another file or an address."""
    pytest.importorskip("pyogrio")
    (tmp_path / "a.gpkg").write_bytes(content)
    line, _ = refused(capsys, tmp_path / "a.gpkg", "--raster", scene, "--out", tmp_path / "out")
    assert "a.gpkg is neither a GeoPackage nor a shapefile by its content" in line and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["0.png", "masks/0.png", "refs.csv"])
def test_the_sheet_takes_the_place_of_no_file_that_is_read(tmp_path, capsys, name):
    source = write_source(tmp_path, 3)
    before = (tmp_path / name).read_bytes()
    line, _ = refused(capsys, source, "--out", tmp_path / "out", "--sheet", tmp_path / name)
    assert f"--sheet {tmp_path / name} is" in line and (tmp_path / name).read_bytes() == before
    assert not (tmp_path / "out").exists()


def test_half_a_character_is_a_bad_row(tmp_path, capsys):
    write_source(tmp_path, 1)
    row = {"image": "0.png", "mask": "masks/0.png"}
    path = write_rows(tmp_path, {**row, "sentence": "a \ud800 roof"}, {**row, "sentence": "x", "category": "\udfff"})
    assert [line.partition(": ")[2] for line in bad_rows(capsys, path)] == [
        f"the text {text} is not valid Unicode: it must be UTF-8 without lone surrogates"
        for text in (r"'a \ud800 roof'", r"'\udfff'")]


def test_a_table_of_more_columns_than_tables_have_is_refused_at_once(tmp_path, capsys):
    (tmp_path / "a.csv").write_text(",".join(f"c{number}" for number in range(300_000)) + "\n")
    line, _ = refused(capsys, tmp_path / "a.csv", "--out", tmp_path / "out")
    assert "a.csv has 300,000 columns: a table here has at most 1000" in line
    write_rows(tmp_path, {f"column {number}": 1 for number in range(50)})
    line, _ = refused(capsys, tmp_path / "refs.jsonl", "--out", tmp_path / "out")
    assert "column 19 …: name it" in line
