"""Data sets of one's own: what dataset.json may say, how --dataset finds them, and that they mix with known ones."""
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from args import TRAINING, get_parser
from data import EvalSet, TrainSet, read_refs
from data.dataset import load_image_and_mask
from data.packed import PackedRefs, write_packed
from refer import REFER
from refer.own import DESCRIPTION, FORMATS, as_written, class_names_of, find_dataset, parse_datasets
from refer.readers import READERS
from refer.same_pictures import same_pictures
from tests.refer.own_sets import import_to, mask_of, write_picture, write_source
from tools import check_dataset, convert_dataset
from utils import UserError

SPLITS = ("--split", 0.6, 0.2, 0.2)


@pytest.fixture(scope="module")
def roofs(tmp_path_factory) -> Path:
    """The folder of a data set `roofs` of ten pictures with a ref of two sentences each, below a data root."""
    folder = tmp_path_factory.mktemp("own")
    return import_to(folder / "root/roofs", write_source(folder / "source"), *SPLITS, "--title", "Roofs of a town",
                     "--licence", "CC0", "--citation", "Doe, 2025")


# dataset.json

def described(folder: Path, **fields: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / DESCRIPTION).write_text(json.dumps({"name": "roofs", "splits": ["train"], **fields}))
    return folder


def test_an_own_data_set_has_a_layout_as_known_ones_have(roofs):
    found = find_dataset(str(roofs), "elsewhere")
    assert (found.name, found.is_own, found.layout.title, found.layout.max_tokens) == (
        "roofs", True, "Roofs of a town", 20)
    assert found.layout.splits == {"own": ("train", "val", "test")} and found.layout.category_names == ("other",)
    assert (found.layout.licence, found.layout.citation) == ("CC0", "Doe, 2025")
    index = REFER(roofs.parent, "roofs")
    assert index.is_own and index.format == "jsonl" and index.splitBy == "own"
    assert index.split_counts() == {"train": 6, "val": 2, "test": 2}


@pytest.mark.parametrize(("fields", "words"), [
    ({"name": "rrsisd"}, "name must be a text, at most 60 letters"), ({"name": "../x"}, "name must be a text"),
    ({"name": "a/b"}, "name must be a text"), ({"images": "../../etc"}, "images must be a text, a path inside"),
    ({"images": "/etc"}, "images must be a text, a path inside"), ({"images": "a\0b"}, "images must be"),
    ({"splits": []}, "splits must be"), ({"splits": ["train", "train"]}, "none of them twice"),
    ({"splits": ["trian"]}, "splits[0] must be one of 'train'"), ({"max_tokens": 10**9}, "max_tokens must be a whole"),
    ({"format": "pickle"}, "format must be one of 'jsonl'"), ({"split_by": "../x"}, "split_by must be"),
    ({"categories": [1]}, "categories[0] must be a text"), ({"max_token": 30}, "has 'max_token', which is not known")])
def test_a_wrong_field_is_named_with_its_file(tmp_path, fields, words):
    folder = described(tmp_path / "own", **fields)
    with pytest.raises(UserError) as caught:
        REFER(tmp_path, str(folder))
    assert str(caught.value).startswith(f"{folder / DESCRIPTION}: ") and words in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"name": 1', "[" * 100_000])
def test_what_is_no_description_is_refused(tmp_path, text):
    (tmp_path / DESCRIPTION).write_text(text)
    with pytest.raises(UserError, match=DESCRIPTION):
        find_dataset(str(tmp_path), ".")


def test_every_reader_may_be_named_as_format():
    assert set(FORMATS) == set(READERS)


def test_file_names_in_lines_stay_inside_the_folder_too(roofs, tmp_path):
    folder = shutil.copytree(roofs, tmp_path / "roofs", symlinks=True)
    lines = (folder / "roofs_val.jsonl").read_text()
    (folder / "roofs_val.jsonl").write_text(lines.replace('"file_name": "', '"file_name": "../../'))
    with pytest.raises(UserError, match="must be a text, a path inside the folder of images"):
        REFER(".", str(folder))


# --dataset

def test_the_folder_may_be_named_in_several_ways(roofs, monkeypatch):
    monkeypatch.chdir(roofs.parent)
    for name, root in (("roofs", roofs.parent), (str(roofs), "x"), ("roofs", "nowhere"), ("./roofs/", "x"),
                       (f"{roofs}/.", "x")):
        assert REFER(root, name).split_counts()["train"] == 6, name
    monkeypatch.chdir(roofs)
    assert REFER("x", "./.").dataset == "roofs"


def test_a_name_below_the_data_root_comes_before_one_here(roofs, tmp_path, monkeypatch):
    described(tmp_path / "roofs", title="another")
    monkeypatch.chdir(tmp_path)
    assert find_dataset("roofs", roofs.parent).layout.title == "Roofs of a town"
    assert find_dataset("./roofs", roofs.parent).layout.title == find_dataset("roofs", ".").layout.title == "another"


def test_data_sets_are_listed_together(roofs, tmp_path):
    chosen = parse_datasets(f"rrsisd, {roofs}:own,refcocog:umd")
    assert [(dataset.name, way) for dataset, way in chosen] == [("rrsisd", "unc"), ("roofs", "own"),
                                                                 ("refcocog", "umd")]
    with pytest.raises(UserError, match="names roofs twice"):
        parse_datasets(f"{roofs},roofs", data_root=roofs.parent)
    odd = described(tmp_path / "a,b:c")
    assert [dataset.name for dataset, _ in parse_datasets(str(odd))] == ["roofs"]


def test_one_folder_has_one_spelling_in_checkpoints():
    assert as_written("rrsisd,./my//roofs/,refcocog:umd") == "rrsisd,my/roofs,refcocog:umd"
    assert as_written("./roofs") == as_written("./x/../roofs/") == "./roofs" and as_written("roofs") == "roofs"


def test_an_unknown_name_lists_the_known_ones_and_says_how_to_import(roofs):
    with pytest.raises(UserError) as caught:
        find_dataset("rooms", roofs.parent)
    for words in ("Unknown data set 'rooms'", "rrsisd, refcoco", "tools/import_dataset.py", f"holds roofs: give "
                  f"--refer_data_root {roofs.parent} --dataset roofs"):
        assert words in str(caught.value)


def test_a_folder_of_another_layout_is_said_to_be_one(roofs, toy, tmp_path):
    for root, dataset, words in (
            (roofs, "rrsisd", f"The folder {roofs} is a data set of its own: give --dataset {roofs}"),
            (roofs.parent, "rrsisd", f"holds roofs: give --refer_data_root {roofs.parent} --dataset roofs"),
            (toy, "refcoco", f"holds rrsisd: give --refer_data_root {toy} --dataset rrsisd"),
            (".", str(toy), "the folder has no dataset.json"), (".", str(toy), f"--refer_data_root {toy} --dataset")):
        with pytest.raises(UserError) as caught:
            REFER(root, dataset)
        assert words in str(caught.value)
    (tmp_path / "rrsisd").mkdir()
    described(tmp_path / "rrsisd")
    with pytest.raises(UserError, match=r"holds no files of rrsisd\..*is a data set of its own"):
        REFER(tmp_path, "rrsisd")


def test_flags_take_the_folder_and_its_length_of_sentences(roofs, tmp_path, capsys):
    longer = described(tmp_path / "longer", name="longer", max_tokens=33)
    parse = get_parser(*TRAINING).parse_args
    assert parse(["--dataset", str(roofs)]).max_tokens == 20
    assert parse(["--dataset", f"rrsisd,{longer}/"]).max_tokens == 33
    assert parse(["--dataset", f"rrsisd,{longer}/"]).dataset == f"rrsisd,{longer}"
    with pytest.raises(SystemExit):
        parse(["--dataset", str(tmp_path)])
    assert "has no dataset.json" in capsys.readouterr().err


# Known and own data sets together

def test_it_trains_with_a_known_one_and_is_packed(roofs, toy, tokenizer, tmp_path):
    refs = read_refs(str(toy), f"rrsisd,{roofs}", "unc")
    assert refs.datasets == ["rrsisd", "roofs"] and refs.class_names(1) == ("other",)
    train = TrainSet(refs, "train", tokenizer, 16, seed=1)
    assert len(train) == 32 + 6, "one sentence of each ref"
    assert train[0, 37]["image"].shape == (3, 16, 16)
    own = REFER(".", str(roofs))
    assert EvalSet(own, "val", tokenizer, 16).name == "roofs" and len(EvalSet(own, "val", tokenizer, 16)) == 4
    write_packed(tmp_path / "x.h5", own, 16, partial(load_image_and_mask, own), iter)
    assert PackedRefs(tmp_path / "x.h5", REFER(roofs.parent, "roofs"), 16).load(0)[0].shape == (3, 16, 16)
    assert class_names_of(str(roofs), ".") == ("other",)


@pytest.mark.parametrize("copy", [(), ("--copy",)], ids=["linked", "copied"])
def test_an_image_of_an_own_test_split_is_not_trained_on(toy, tokenizer, tmp_path, copy):
    known = REFER(toy, "rrsisd")
    train_image = known.image_path(known.getRefIds(split="train")[0])
    source = tmp_path / "refs.jsonl"
    box = [1, 1, 9, 9]
    write_picture(tmp_path / "own.png", size=(64, 64))
    source.write_text(json.dumps({"image": train_image, "box": box, "sentence": "x", "split": "test"}) + "\n"
                      + json.dumps({"image": str(tmp_path / "own.png"), "box": box, "sentence": "x", "split": "train"}))
    own = import_to(tmp_path / "leaky", source, *copy)
    refs = read_refs(str(toy), f"rrsisd,{own}", "unc")
    with pytest.raises(UserError, match="1 images of the test split of leaky are trained on in 2 of 32 training refs of"
                                        " rrsisd"):
        TrainSet(refs, "train", tokenizer, 16, seed=1)
    TrainSet(refs, "train", tokenizer, 16, seed=1, allow_leak=True)


def test_pictures_are_compared_by_their_bytes(tmp_path):
    for name, content in (("a", b"x" * 40_000), ("b", b"x" * 40_000), ("c", b"x" * 39_999 + b"y"), ("d", b"x")):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "link").symlink_to(tmp_path / "d")
    a, b, c, d, link, none = (str(tmp_path / name) for name in ("a", "b", "c", "d", "link", "none"))
    assert same_pictures([a, b, c, d, link, none, none]) == {a: a, b: a, c: c, d: d, link: d, none: none}


# Tools

def test_check_dataset_finds_no_fault(roofs, capsys):
    assert check_dataset.main(["--dataset", str(roofs), "-j", "0"]) == 0
    assert "0 faults, 0 notes" in capsys.readouterr().out


@pytest.mark.parametrize("to", ["jsonl", "coco", "refer", "phrases"])
def test_converted_it_is_a_data_set_of_ones_own_with_the_same_masks(roofs, tmp_path, to):
    convert_dataset.main(["--dataset", str(roofs), "--to", to, "--out", str(tmp_path), "--images", "copy"])
    index, before = REFER(tmp_path, "roofs"), REFER(".", str(roofs))
    assert index.format == to and index.is_own and index.layout.licence == "CC0"
    assert index.split_counts() == before.split_counts()
    assert not list(check_dataset.check_masks_and_images(index))
    masks = [sorted(own.getMask(ref)["mask"].tobytes() for ref in own.Refs.values()) for own in (index, before)]
    assert masks[0] == masks[1]
    if to not in ("coco", "jsonl"):
        return
    again = import_to(tmp_path / "again", *sorted((tmp_path / "roofs").glob(f"roofs_*.{to.replace('coco', 'json')}")),
                      "--images", tmp_path / "roofs/images")
    for ref_id, ref in REFER(".", str(again)).Refs.items():
        assert ref["split"] == before.Refs[ref_id]["split"]
        assert [s["raw"] for s in ref["sentences"]] == [s["raw"] for s in before.Refs[ref_id]["sentences"]]
        np.testing.assert_array_equal(REFER(".", str(again)).getMask(ref_id)["mask"], before.getMask(ref_id)["mask"])
    assert mask_of(0).tobytes() in {mask.tobytes() for mask in
                                    (before.getMask(ref)["mask"] for ref in before.Refs.values())}
