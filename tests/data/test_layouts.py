"""One set of scenes in every layout and format: the same masks, and the same pixel counts to the last one."""
import hashlib
import json
import pickle
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import EvalSet, TrainSet, eval_loader, read_refs
from data.toy import make_toy_rrsisd
from data.toy.layouts import LAYOUTS
from lib.evaluation.generalized import all_metrics
from lib.evaluation.metrics import evaluate
from refer import REFER
from refer.check import check_entries, read_index
from refer.check_files import check_masks_and_images
from tests.launch import assert_refused, nano_flags, run_script
from tools import check_dataset, convert_dataset
from utils import UserError

pytestmark = pytest.mark.usefixtures("narrow_nano")

SIZE = 64
FORMATS = ("refer", "coco", "jsonl", "phrases")
SAMPLES = {"grefcoco": 2, "nwpu_refer": 2, "earthreason": 1.5}   # for each of RRSIS-D's; these say more of a scene
# Their readers make of their files what those of other layouts make, which go through all conversions and programs.
AS_OTHERS = ("rrsishr", "ris_lad", "earthreason")


@pytest.fixture(scope="module")
def roots(toy, tmp_path_factory) -> dict[str, Path]:
    """The scenes of the fixture `toy` in each layout: data set -> data root."""
    folder = tmp_path_factory.mktemp("layouts")
    for layout in LAYOUTS:
        make_toy_rrsisd(folder / layout, images=20, size=SIZE, seed=3, layout=layout)
    return {"rrsisd": toy, **{layout: folder / layout for layout in LAYOUTS}}


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:12]


def seen(root: Path, dataset: str, split: str, tokenizer) -> Counter:
    """The content of an evaluation: how often each (sentence, picture, mask, category) occurs."""
    samples = EvalSet(read_refs(str(root), dataset, "unc"), split, tokenizer, SIZE, max_tokens=20)
    return Counter((samples.describe(index)["sentence"], digest(sample["image"].numpy()),
                    digest(sample["target"].numpy()))
                   for index, sample in ((index, samples[index]) for index in range(len(samples))))


def counted(root: Path, dataset: str, tokenizer, network) -> dict[tuple, list[int]]:
    """Pixel counts of the test split, by sentence and picture."""
    samples = EvalSet(read_refs(str(root), dataset, "unc"), "test", tokenizer, SIZE, max_tokens=20)
    rows = evaluate(network, eval_loader(samples, 1, 0, False, 0, 1), torch.device("cpu")).tolist()
    return {(samples.describe(index)["sentence"], digest(samples[index]["image"].numpy())): counts
            for index, *counts in rows}


@pytest.fixture(scope="module")
def in_rrsisd(roots, tokenizer) -> dict[str, Counter]:
    """What is `seen` of each split in RRSIS-D's layout."""
    return {split: seen(roots["rrsisd"], "rrsisd", split, tokenizer) for split in ("train", "val", "test")}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_show_the_same_scenes(roots, tokenizer, nano, in_rrsisd, layout):
    for split, here in in_rrsisd.items():
        there = seen(roots[layout], layout, split, tokenizer)
        assert here.total() == {"train": 32, "val": 4, "test": 4}[split]
        assert there.total() == SAMPLES.get(layout, 1) * here.total() and here <= there
    network = nano()
    here, there = (counted(roots[name], name, tokenizer, network) for name in ("rrsisd", layout))
    assert len(here) == 4 and all(there[key] == counts for key, counts in here.items())


def test_nwpu_refers_refs_of_one_sentence_are_one_sample(roots, tokenizer, nano, capsys):
    """Of the toy layout's 80 samples 20 mean several objects, which the file gives a ref each, and 20 mean nothing."""
    root = roots["nwpu_refer"]
    entries = pickle.loads((root / "nwpu_refer/new_refs(unc).p").read_bytes())
    index, grefcoco = REFER(root, "nwpu_refer"), REFER(roots["grefcoco"], "grefcoco")
    several = [ref for ref in index.Refs.values() if len(ref["ann_ids"]) > 1]
    in_file = sum(len(ref["ann_ids"]) for ref in several)
    assert len(index.Refs) == 80 and len(entries) == 60 + in_file and len(several) == 20
    assert sum(ref["no_target"] for ref in index.Refs.values()) == 20
    said = f"new_refs(unc).p: {in_file} refs of equal picture, sentence and split are united into 20, of 80 in all"
    assert index.notes == [("united refs", said)]
    for ref, other in zip(index.Refs.values(), grefcoco.Refs.values(), strict=True):
        assert ref["sentences"][0]["raw"] == other["sentences"][0]["raw"]
        np.testing.assert_array_equal(index.getMask(ref)["mask"], grefcoco.getMask(other)["mask"])
    rows = []
    for layout in ("nwpu_refer", "grefcoco"):
        samples = EvalSet(read_refs(str(roots[layout]), layout, "unc"), "val", tokenizer, SIZE)
        counts = evaluate(nano(), eval_loader(samples, 1, 0, False, 0, 1), torch.device("cpu")).numpy()
        rows.append(all_metrics(counts[:, 1:], samples.no_target(counts[:, 0]), 50))
    assert rows[0] == rows[1] and sum(rows[0]["generalized"]["counts"].values()) == 8
    assert samples.table.notes == [] and said in capsys.readouterr().out, "train.py and test.py say it, too"
    assert check_dataset.main(["--refer_data_root", str(root), "--dataset", "nwpu_refer", "-j", "0"]) == 0
    out = capsys.readouterr().out
    assert f"    {said}" in out and "20 refs without a target" in out


def test_earthreasons_questions_without_an_answer_mean_nothing(roots, tmp_path, capsys):
    index = REFER(roots["earthreason"], "earthreason")
    nothing = [ref for ref in index.Refs.values() if ref["no_target"]]
    assert len(nothing) == 20 and not any(index.getMask(ref)["area"] for ref in nothing)
    flags = ["--refer_data_root", str(roots["earthreason"]), "--dataset", "earthreason", "-j", "0"]
    assert check_dataset.main(flags) == 0
    assert "60 refs, 60 sentences, 60 images, 20 refs without a target" in capsys.readouterr().out
    out = tmp_path / "lines"
    convert_dataset.main([*flags[:4], "--to", "jsonl", "--out", str(out)])
    lines = REFER(out, "earthreason")
    assert sum(bool(ref.get("no_target")) for ref in lines.Refs.values()) == 20 and Path(lines.image_path(0)).is_file()


def test_grefcocos_other_sentences_mean_several_and_nothing(roots, tokenizer, nano):
    index = REFER(roots["grefcoco"], "grefcoco")
    several = [ref for ref in index.Refs.values() if len(ref["ann_ids"]) > 1]
    nothing = [ref for ref in index.Refs.values() if ref["no_target"]]
    assert len(several) == len(nothing) == 20 and not any(index.getMask(ref)["area"] for ref in nothing)
    for ref in several:
        parts = [index.getMask(other)["mask"] for other in index.imgToRefs[ref["image_id"]]
                 if len(other["ann_ids"]) == 1 and other["ann_ids"][0] in ref["ann_ids"]]
        whole = index.getMask(ref)["mask"]
        assert all((whole >= part).all() for part in parts)
    samples = EvalSet(index, "val", tokenizer, SIZE)
    rows = evaluate(nano(), eval_loader(samples, 1, 0, False, 0, 1), torch.device("cpu")).numpy()
    metrics = all_metrics(rows[:, 1:], samples.no_target(rows[:, 0]), 50)
    assert sum(metrics["generalized"]["counts"].values()) == 8
    train = TrainSet(index, "train", tokenizer, SIZE, seed=1)
    empty = [number for number in range(len(train)) if train.ref_of(number)["no_target"]]
    assert len(empty) == 16 and not any(train[0, number]["target"].any() for number in empty)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["rrsisd", "refsegrs", "risbench", "grefcoco"])
@pytest.mark.parametrize("to", FORMATS)
def test_conversion_there_and_back(roots, tokenizer, tmp_path, capsys, layout, to):
    """Converts to a format and back to the set's own, or to REFER's if no writer has that."""
    own = {"rrsisd": "refer", "grefcoco": "refer"}.get(layout, "phrases")
    flags = ["--dataset", layout]
    convert_dataset.main(["--refer_data_root", str(roots[layout]), *flags, "--to", to, "--out",
                          str(tmp_path / "there")])
    convert_dataset.main(["--refer_data_root", str(tmp_path / "there"), *flags, "--to", own, "--out",
                          str(tmp_path / "back")])
    assert f"of {layout}, read as {to}," in capsys.readouterr().out
    for root in (tmp_path / "there", tmp_path / "back"):
        found = read_index(root, layout, "unc")
        entries = [*found[1], *check_entries(found[0]), *check_masks_and_images(found[0])]
        faults = {finding.kind for finding in entries if finding.is_fault}
        assert faults <= ({"empty mask"} if layout == "grefcoco" and to == "phrases" else set())
        for split in ("train", "val", "test"):
            assert seen(root, layout, split, tokenizer) == seen(roots[layout], layout, split, tokenizer)


@pytest.mark.parametrize("to", ["refer", "coco", "jsonl"])
def test_what_a_format_holds_comes_back(roots, tmp_path, to):
    for layout in ("rrsisd", "grefcoco"):
        out = tmp_path / layout
        convert_dataset.main(["--refer_data_root", str(roots[layout]), "--dataset", layout, "--to", to, "--out",
                              str(out), "--images", "none"])
        before, after = REFER(roots[layout], layout), REFER(out, layout)
        assert list(before.Refs) == sorted(after.Refs)
        for ref_id, ref in before.Refs.items():
            other = after.Refs[ref_id]
            assert (other["split"], other["image_id"], bool(other.get("no_target"))) == (
                ref["split"], ref["image_id"], bool(ref.get("no_target")))
            assert before.Cats[ref["category_id"]] == after.Cats[other["category_id"]]
            assert [s["sent_id"] for s in other["sentences"]] == [s["sent_id"] for s in ref["sentences"]]
            if layout == "rrsisd":
                assert after.getRefBox(ref_id) == before.getRefBox(ref_id)


def test_what_is_lost_is_said(roots, tmp_path, capsys):
    convert_dataset.main(["--refer_data_root", str(roots["grefcoco"]), "--dataset", "grefcoco", "--to", "phrases",
                          "--out", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert "lost or changed: that 20 refs have no target by design" in out and "lost or changed: categories" in out
    with pytest.raises(SystemExit) as ended:
        convert_dataset.main(["--refer_data_root", str(roots["grefcoco"]), "--dataset", "grefcoco", "--to", "jsonl",
                              "--out", str(tmp_path / "out")])
    assert ended.value.code == 2 and "is not empty: give --out a folder without" in capsys.readouterr().err


def test_a_split_without_a_phrase_file_is_refused_and_masks_get_their_images_size(roots, tmp_path):
    """64 training refs once went into the test file, and our own reader refused masks of another size."""
    index = REFER(roots["rrsisd"], "rrsisd")
    first = next(iter(index.Refs.values()))
    for ref in index.Refs.values():
        ref["split"] = "trainval"
    with pytest.raises(UserError, match="phrase files are written a file a split, and 'trainval' is none of train"):
        convert_dataset.WRITERS["phrases"](index, tmp_path / "out", iter)
    assert not (tmp_path / "out").exists()
    for ref in index.Refs.values():
        ref["split"] = "testA"
    index.IMAGE_DIR = str(tmp_path / "images")
    shutil.copytree(roots["rrsisd"] / index.layout.image_folder, index.IMAGE_DIR)
    wide = Image.open(index.image_path(first)).size
    wide = wide[0] + 1, wide[1]
    Image.new("RGB", wide).save(index.image_path(first))
    lost = convert_dataset.WRITERS["phrases"](index, tmp_path / "out", iter)
    assert sum("masks had another size than their images" in line for line in lost) == 1
    again = REFER(tmp_path / "out", "rrsisd")
    assert [again.getMask(ref)["mask"].shape for ref in again.Refs.values()].count(wide[::-1]) == len(
        index.imgToRefs[first["image_id"]])


def test_copied_images_stand_alone(roots, tmp_path):
    shutil.copytree(roots["rrsisd"], tmp_path / "source")
    for how in ("link", "copy"):
        convert_dataset.main(["--refer_data_root", str(tmp_path / "source"), "--dataset", "rrsisd", "--to", "jsonl",
                              "--out", str(tmp_path / how), "--images", how])
    shutil.rmtree(tmp_path / "source")
    index = REFER(tmp_path / "copy", "rrsisd")
    assert Path(index.image_path(0)).is_file() and not (tmp_path / "link" / Path(index.image_path(0)).relative_to(
        tmp_path / "copy")).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout not in AS_OTHERS])
def test_training_and_testing_end_to_end(roots, tmp_path, layout):
    """One epoch, then the test split on one process and on three: the same whole numbers."""
    root = roots[layout]
    data = ["--refer_data_root", root, "--dataset", layout, "--workers", 0, "--batch-size", 4]
    done = run_script("train.py", *nano_flags(root), *data, "--epochs", 1, "--model_id", "x", "--no_target_pixels", 10,
                      cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    generalized = layout in ("grefcoco", "nwpu_refer")
    assert ("N-acc" in done.stdout) == generalized
    results = []
    for processes in (1, 3):
        path = tmp_path / f"{processes}.json"
        done = run_script("test.py", *data, "--resume", "checkpoints/model_best_x.pth", "--results", path,
                          "--no_target_pixels", 10, "--markdown", cwd=tmp_path, processes=processes)
        assert done.returncode == 0, done.stderr
        results.append(json.loads(path.read_text()))
    assert results[0]["samples"] == results[1]["samples"] and results[0]["mIoU"] == results[1]["mIoU"]
    assert (["united" in note for note in results[0]["notes"]] == [True]) == (layout == "nwpu_refer")
    if generalized:
        assert results[0]["generalized"] == results[1]["generalized"]
        assert sum(results[0]["generalized"]["counts"].values()) == len(results[0]["samples"]) == 8
        assert results[0]["generalized"]["no_target_pixels"] == 10 and "| gIoU | cIoU |" in done.stdout
        assert sum(sample.get("no_target", False) for sample in results[0]["samples"]) == 2
    saved = torch.load(tmp_path / "checkpoints/model_best_x.pth", weights_only=True)
    assert saved["config"]["max_tokens"] == (50 if layout == "risbench" else 20)


BAD_INPUT = {
    "no phrase": (lambda folder: add(folder / "output_phrase_train.txt", "train_1_0.png\n"),
                  "output_phrase_train.txt, line 33 has no phrase after 'train_1_0.png'"),
    "no image": (lambda folder: (folder / "img_rgb" / first(folder)).unlink(), "line 1: its image "),
    "no mask": (lambda folder: (folder / "mask" / first(folder)).unlink(), "line 1: its mask "),
    "mask of another size": (lambda folder: Image.new("L", (9, 9)).save(folder / "mask" / first(folder)),
                             "line 1: its mask "),
    "no mask but a picture": (lambda folder: shutil.copy(folder / "img_rgb" / first(folder),
                                                         folder / "mask" / first(folder)), "different values"),
}


def add(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def first(folder: Path) -> str:
    return (folder / "output_phrase_train.txt").read_text().split()[0]


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_ends_train_with_one_line_and_status_2(roots, tmp_path, name):
    spoil, words = BAD_INPUT[name]
    root = shutil.copytree(roots["risbench"], tmp_path / "data")
    spoil(root / "risbench")
    done = run_script("train.py", *nano_flags(root, "--dataset", "risbench", "--batch-size", 32, "--epochs", 1),
                      cwd=tmp_path)
    assert_refused(done, f"{root / 'risbench/output_phrase_train.txt'}, line ", words)


def test_a_split_that_no_file_name_holds_is_refused_by_coco(roots, tmp_path):
    index = REFER(roots["rrsisd"], "rrsisd")
    index.Refs[0]["split"] = "extra"
    with pytest.raises(UserError, match="'extra' is none of train, val, "):
        convert_dataset.WRITERS["coco"](index, tmp_path, iter)
