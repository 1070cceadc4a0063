"""Which refs are trained on: several data sets, exclusion lists, images of test splits; how long sentences may be."""
import json
import os
import pickle
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from data import EvalSet, TrainSet, read_refs
from data.dataset import load_image_and_mask
from data.shared import MadeApart, machine, save, shared_arrays
from data.toy import make_toy_rrsisd
from refer import REFER
from refer.selection import EXCLUSIONS, read_exclusions
from refer.table import RefTable
from tests.conftest import equal_samples
from utils import UserError


def as_coco_set(toy: Path, root: Path, name: str, splits: dict[str, str], split_by: str = "unc") -> None:
    """The toy set under the name of one that is made of COCO's images; `splits` renames its splits."""
    refs = pickle.loads((toy / "rrsisd/refs(unc).p").read_bytes())
    instances = json.loads((toy / "rrsisd/instances.json").read_text())
    for annotation in instances["annotations"]:
        annotation["category_id"] = annotation.pop("categories_id")
    (root / name).mkdir(parents=True)
    (root / name / f"refs({split_by}).p").write_bytes(
        pickle.dumps([{**ref, "split": splits[ref["split"]]} for ref in refs], 4))
    (root / name / "instances.json").write_text(json.dumps(instances))
    images = root / "images/mscoco/images/train2014"
    if not images.exists():
        shutil.copytree(toy / "images/rrsisd/JPEGImages", images)


# The table

def test_a_table_says_what_the_index_says(refer):
    table = RefTable.of(refer)
    for row, (ref_id, ref) in enumerate(refer.Refs.items()):
        own = table.ref(row)
        assert (own["ref_id"], own["image_id"], own["category"]) == (
            ref_id, ref["image_id"], refer.Cats[ref["category_id"]])
        assert [(s["sent_id"], s["raw"]) for s in own["sentences"]] == [
            (s["sent_id"], s["raw"]) for s in ref["sentences"]]
        assert table.image_path(row) == refer.image_path(ref) and table.where(row) == refer.where(ref)
        np.testing.assert_array_equal(table.mask(row), refer.getMask(ref)["mask"])
    assert [table.ref(row)["ref_id"] for row in table.rows("val").tolist()] == refer.getRefIds(split="val")
    with pytest.raises(UserError) as by_table:
        table.rows("testA")
    with pytest.raises(UserError) as by_index:
        refer.getRefIds(split="testA")
    assert str(by_table.value) == str(by_index.value)


def test_refs_read_apart_are_the_same_and_leave_nothing_behind(toy, refer, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    refs = read_refs(str(toy), "rrsisd", "unc")
    assert not list(tmp_path.iterdir()) and isinstance(refs.image_of.base, np.memmap)
    apart, here = (TrainSet(source, "train", tokenizer, 32, seed=1) for source in (refs, refer))
    assert all(equal_samples(apart[0, index], here[0, index]) for index in range(len(here)))


def held(value: object) -> int:
    """How many Python objects the value's containers and its own parts hold."""
    if isinstance(value, dict):
        return len(value) + sum(map(held, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return len(value) + sum(map(held, value))
    return held(vars(value)) if type(value).__module__.startswith(("data", "refer")) else 1


def test_what_training_holds_does_not_grow_with_the_refs(tmp_path, tokenizer):
    """Each object of a ref would take memory in every process, and in every worker the page of its reference count."""
    sizes = []
    for images in (10, 30):
        make_toy_rrsisd(tmp_path / str(images), images=images, size=64)
        train = TrainSet(read_refs(str(tmp_path / str(images)), "rrsisd", "unc"), "train", tokenizer, 32, seed=1,
                         random_box_share=0.2)
        sizes.append(held(vars(train)))
    assert len(train) == 48 and sizes[1] - sizes[0] < 8   # a category or two more


def test_errors_of_the_process_apart_are_said_here(toy):
    with pytest.raises(UserError, match="rrsisd is not split by 'umd'"):
        read_refs(str(toy), "rrsisd", "umd")
    with pytest.raises(UserError, match="Missing the data root"):
        read_refs(str(toy / "none"), "rrsisd", "unc")
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        shared_arrays(MadeApart(lambda: {"x": np.array([1 / 0])}).write)
    with pytest.raises(RuntimeError, match="it may have lacked memory"):
        shared_arrays(MadeApart(lambda: os._exit(7)).write)


def test_the_process_apart_ends_with_this_one():
    apart = MadeApart(lambda: {"x": np.zeros(1)})
    apart.connection.close()   # as the system does, whatever ended this one
    assert os.waitpid(apart.child, 0)[1] == 0
    apart.end_child.detach()
    slow = MadeApart(lambda: time.sleep(60))
    child = slow.child
    del slow   # an error came before anybody asked for the arrays
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_process_that_does_not_begin_makes_the_arrays_when_none_has(tmp_path):
    here = MadeApart(lambda: {"x": np.array([os.getpid()])}, begin=False)
    assert shared_arrays(here.write, ready=False)["x"] == os.getpid()
    apart = MadeApart(lambda: {"x": np.array([os.getpid()])})
    assert shared_arrays(apart.write)["x"] == apart.child


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(UserError, match="name another folder in TMPDIR"):
        shared_arrays(lambda folder: save({"x": np.zeros(1)}, folder))
    with pytest.raises(OSError, match="No such file"):
        MadeApart(lambda: {"x": np.zeros(1)}).write(tmp_path / "none")


# Several data sets

DISJOINT = {"train": "train", "val": "val", "test": "testA"}


def test_containers_of_one_host_name_are_told_apart_by_their_temporary_folders(tmp_path, monkeypatch):
    here = machine()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert machine()[0] == here[0] and machine() != here
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    assert machine() == (here[0], 0, 0)


@pytest.fixture
def two(toy, tmp_path) -> Path:
    """RefCOCO and RefCOCO+ on the same images with the same splits."""
    as_coco_set(toy, tmp_path, "refcoco", DISJOINT)
    as_coco_set(toy, tmp_path, "refcoco+", DISJOINT)
    return tmp_path


def test_training_on_two_sets_shows_the_refs_of_both_and_validation_the_first(two, toy, tokenizer):
    refs = read_refs(str(two), "refcoco,refcoco+", "unc")
    train = TrainSet(refs, "train", tokenizer, 32, seed=1)
    alone = TrainSet(REFER(toy, "rrsisd"), "train", tokenizer, 32, seed=1)
    assert len(train) == 2 * len(alone) == 64
    for index in range(32):
        for place in (index, index + 32):
            assert np.array_equal(train[0, place]["image"], alone[0, index]["image"])
            assert np.array_equal(train[0, place]["target"], alone[0, index]["target"])
    assert len(EvalSet(refs, "val", tokenizer, 32, source=0)) == 4
    with pytest.raises(UserError, match=r"an evaluation is of one data set, but --dataset names refcoco, refcoco\+"):
        EvalSet(refs, "val", tokenizer, 32)


def test_an_id_of_two_data_sets_is_excluded_from_the_one_that_is_named(two, tokenizer, tmp_path):
    refs = read_refs(str(two), "refcoco,refcoco+", "unc")
    row = int(refs.rows("train")[0])
    ref_id, image = refs.ref(row)["ref_id"], os.path.basename(refs.image_path(row))

    def left(entry: str) -> int:
        (tmp_path / "out.txt").write_text(entry)
        return len(TrainSet(refs, "train", tokenizer, 32, seed=1, exclude=str(tmp_path / "out.txt")))

    with pytest.raises(UserError, match=rf"refs of refcoco and of refcoco\+ have the id {ref_id}: write refcoco:"):
        left(str(ref_id))
    assert left(f"refcoco+:{ref_id}") == 63
    assert left(image) == 60   # the two refs of this picture in both


def test_images_of_another_sets_test_split_are_refused(toy, tmp_path, tokenizer, capsys):
    as_coco_set(toy, tmp_path, "refcoco", DISJOINT)
    as_coco_set(toy, tmp_path, "refcocog", {"train": "test", "val": "val", "test": "train"}, "umd")
    refs = read_refs(str(tmp_path), "refcoco,refcocog:umd", "unc")
    with pytest.raises(UserError) as caught:
        TrainSet(refs, "train", tokenizer, 32, seed=1)
    assert "16 images of the test split of refcocog are trained on in 32 of 32 training refs of refcoco" in str(
        caught.value)
    assert "2 images of the test split of refcoco are trained on in 4 of 4 training refs of refcocog" in str(
        caught.value) and "--allow_leak" in str(caught.value)
    assert len(TrainSet(refs, "train", tokenizer, 32, seed=1, allow_leak=True)) == 36
    assert "--allow_leak: 16 images" in capsys.readouterr().out


def test_images_of_another_sets_val_split_are_said(toy, tmp_path, tokenizer, capsys):
    as_coco_set(toy, tmp_path, "refcoco", DISJOINT)
    as_coco_set(toy, tmp_path, "refcoco+", {"train": "train", "val": "train", "test": "testA"})
    assert len(TrainSet(read_refs(str(tmp_path), "refcoco,refcoco+", "unc"), "train", tokenizer, 32, seed=1)) == 68
    assert ("2 images of the val split of refcoco are trained on in 4 of 36 training refs of refcoco+: the best epoch "
            "is chosen on images that are trained on") in capsys.readouterr().out


# Exclusion lists

def test_ids_and_file_names_are_left_out_of_training_alone(refer, tokenizer, tmp_path, capsys):
    train = [refer.Refs[ref_id] for ref_id in refer.getRefIds(split="train")]
    val = refer.loadRefs(refer.getRefIds(split="val"))[0]
    other = next(ref for ref in train if ref["image_id"] != train[0]["image_id"])
    another = next(ref for ref in train if ref["image_id"] not in (train[0]["image_id"], other["image_id"]))
    path = tmp_path / "list.txt"
    path.write_text(f"# why\n{train[0]['ref_id']}\n{other['file_name']}  # both of its refs\n\n"
                    f"{another['file_name'].removesuffix('.jpg')}\nnone.jpg\n{val['ref_id']}\n")
    left = TrainSet(refer, "train", tokenizer, 32, seed=1, exclude=str(path))
    out = {train[0]["ref_id"]} | {ref["ref_id"] for ref in train if ref["image_id"] in (
        other["image_id"], another["image_id"])}
    assert [ref["ref_id"] for ref in left.refs] == [ref["ref_id"] for ref in train if ref["ref_id"] not in out]
    assert len(out) == 5
    assert "5 of 32 training refs are left out; 2 of its 5 entries name none, the first is none.jpg" in (
        capsys.readouterr().out)


@pytest.mark.parametrize(("name", "entries", "first"), [
    ("risbench_train.txt", 16, "train_12443_2"), ("rrsisd_train.txt", 24, "01072"),
    ("rrsisd_empty_masks.txt", 2, "22187")])
def test_known_lists(name, entries, first):
    found = read_exclusions(name)
    assert len(set(found)) == entries and found[0] == first
    assert re.match(r"# \d+ training refs of R", (EXCLUSIONS / name).read_text())


def test_an_unknown_list_names_the_known_ones():
    with pytest.raises(UserError, match=r"--exclude nowhere.txt cannot be read .*risbench_train.txt, rrsisd_empty"):
        read_exclusions("nowhere.txt")


# Phrase files, and how long sentences may be

def test_every_sentence_of_a_phrase_file_is_a_training_sample(toy, refer, tokenizer, tmp_path):
    folder = tmp_path / "risbench"
    (folder / "mask").mkdir(parents=True)
    from PIL import Image
    ref = refer.Refs[0]
    image, mask = load_image_and_mask(refer, ref)
    (folder / "img_rgb").mkdir()
    image.save(folder / "img_rgb/train_1.png")
    Image.fromarray(mask * np.uint8(255)).save(folder / "mask/train_1.png")
    (folder / "output_phrase_train.txt").write_text("train_1.png the red ship\ntrain_1.png the large ship\n")
    (folder / "output_phrase_val.txt").write_text("train_1.png " + "ship " * 60 + "\n")
    refs = read_refs(str(tmp_path), "risbench", "unc")
    train = TrainSet(refs, "train", tokenizer, 64, seed=1)
    assert len(train.refs) == 1 and len(train) == 2
    for epoch in (0, 1):
        assert [int(train[epoch, index]["token_mask"].sum()) for index in (0, 1)] == [5, 5]
        assert not np.array_equal(train[epoch, 0]["token_ids"], train[epoch, 1]["token_ids"])
    np.testing.assert_array_equal(train[0, 0]["target"], mask)
    for longest in (20, 50):
        sample = EvalSet(refs, "val", tokenizer, 64, max_tokens=longest)[0]
        assert sample["token_ids"].shape == (longest,) and sample["token_mask"].sum() == longest
