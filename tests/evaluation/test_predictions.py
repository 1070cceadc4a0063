"""Predicted masks: tools/score_predictions.py scores those of test.py as test.py does, and those of other programs."""
import json

import numpy as np
import pytest
import torch
from PIL import Image

from lib.evaluation.metrics import COUNTS
from lib.evaluation.predictions import Prediction, Recorder, encode_mask, png_name, write_predictions
from refer.refer import REFER
from tools import score_predictions
from tools.score_predictions import read_predictions, score
from utils import UserError


@pytest.fixture
def truths(refer) -> dict[tuple[str, str], np.ndarray]:
    """The true masks of the toy set's val split, by ref_id and sent_id."""
    refs = refer.loadRefs(refer.getRefIds(split="val"))
    return {(str(ref["ref_id"]), str(sentence["sent_id"])): refer.getMask(ref)["mask"].astype(bool)
            for ref in refs for sentence in ref["sentences"]}


def entries(masks: dict) -> list[dict]:
    return [{"ref_id": int(ref_id), "sent_id": int(sent_id), "segmentation": encode_mask(mask)}
            for (ref_id, sent_id), mask in masks.items()]


def ious(samples: list[dict]) -> list[float]:
    return [sample["intersection"] / sample["union"] for sample in samples]


def scored(refer: REFER, content: object, tmp_path, size_px: int | None = None) -> tuple[list[dict], int]:
    (tmp_path / "p.json").write_text(json.dumps(content))
    return score(refer, "val", read_predictions(tmp_path / "p.json"), size_px)


def test_the_truth_scores_everything(refer, truths, tmp_path):
    samples, missing = scored(refer, entries(truths), tmp_path)
    assert ious(samples) == [1.0] * 4 and missing == 0
    assert {*COUNTS, "ref_id", "sent_id", "image_id", "category", "sentence", "kind", "object_size", "words"} <= \
        samples[0].keys()


def test_each_prediction_is_compared_in_its_own_size(refer, truths, tmp_path):
    """A mask of 64 × 64 px is scored at 48 × 32, to which the true mask is resized by nearest neighbour."""
    small = {key: np.asarray(Image.fromarray(mask.astype(np.uint8)).resize((32, 48), Image.Resampling.NEAREST)) > 0
             for key, mask in truths.items()}
    assert ious(scored(refer, entries(small), tmp_path)[0]) == [1.0] * 4
    assert max(ious(scored(refer, entries(small), tmp_path, size_px=64)[0])) < 1


def test_a_sample_without_a_prediction_counts_as_none_found(refer, truths, tmp_path):
    samples, missing = scored(refer, entries(truths)[1:], tmp_path)
    assert ious(samples) == [0.0, 1.0, 1.0, 1.0] and missing == 1


def test_without_sent_id_a_mask_goes_for_all_sentences_of_its_ref(refer, truths, tmp_path):
    content = entries(truths)
    for entry in content:
        del entry["sent_id"]
    assert ious(scored(refer, content, tmp_path)[0]) == [1.0] * 4


def test_pictures_and_uncompressed_counts_are_read_too(refer, truths, tmp_path):
    for (ref_id, sent_id), mask in truths.items():
        Image.fromarray(mask.astype(np.uint8)).convert("L").save(tmp_path / f"{ref_id}_{sent_id}.png")   # 0 and 1
    assert ious(score(refer, "val", read_predictions(tmp_path), None)[0]) == [1.0] * 4
    content = entries(truths)
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[2], truths[next(iter(truths))].T.ravel(), [2]]))))
    content[0]["segmentation"] = {"size": [64, 64], "counts": [int(run) for run in runs]}
    assert ious(scored(refer, content, tmp_path)[0]) == [1.0] * 4


@pytest.mark.parametrize(("content", "message"), [
    ({"ref_id": 1}, "must be a list"), ([{"sent_id": 1}], r"\[0\]\.ref_id must be a whole number.* missing"),
    ([3], r"a JSON list of .*: \[0\] must be an object with ref_id, segmentation, but is 3"),
    ([{"ref_id": [1], "segmentation": {}}], r"\[0\]\.ref_id must be"),
    ([{"ref_id": 1, "sent_id": None, "segmentation": {}}], r"\[0\]\.sent_id must be"),
    ([{"ref_id": 999, "sent_id": 1, "segmentation": {}}], "1 of 1 predictions are of no sentence of the split val"),
    ([], "hold none of the 4 samples")])
def test_what_is_no_prediction_is_said(refer, tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        scored(refer, content, tmp_path)


def test_damage_is_said_with_its_place(refer, truths, tmp_path):
    content = entries(truths)
    with pytest.raises(UserError, match=f"sent_id {content[0]['sent_id']} occurs twice"):
        scored(refer, [content[0], *content], tmp_path)
    content[2]["segmentation"]["counts"] = content[2]["segmentation"]["counts"][:-3]
    with pytest.raises(UserError, match=f"the mask of ref_id {content[2]['ref_id']}, .* is damaged"):
        scored(refer, content, tmp_path)
    (tmp_path / "empty").mkdir()
    for path, message in [("none.json", "cannot be read"), ("empty", "neither predictions.json nor PNGs")]:
        with pytest.raises(UserError, match=message):
            read_predictions(tmp_path / path)


def test_an_rle_far_larger_than_its_own_mask_is_refused_before_it_is_decoded(refer, truths, tmp_path):
    content = entries(truths)
    content[0]["segmentation"] = {"size": [46340, 46340], "counts": [46340 ** 2]}   # 2 GB as a mask
    with pytest.raises(UserError, match=r"the mask of ref_id .* is damaged: its size .* 4194304 in all at most"):
        scored(refer, content, tmp_path)


def test_a_picture_far_larger_than_its_mask_is_refused_before_it_is_decoded(refer, truths, tmp_path):
    name = "_".join(next(iter(truths)))
    Image.new("1", (3000, 3000)).save(tmp_path / f"{name}.png")
    with pytest.raises(UserError, match="it has 3000×3000 pixels, more than 4194304 in all"):
        score(refer, "val", read_predictions(tmp_path), None)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_the_alpha_channel_of_a_picture_is_no_mask(refer, truths, tmp_path, mode):
    """Opaque everywhere, as picture programs save; the mask is in the other channels."""
    for (ref_id, sent_id), mask in truths.items():
        Image.fromarray(mask.astype(np.uint8) * 255).convert(mode).save(tmp_path / f"{ref_id}_{sent_id}.png")
    assert ious(score(refer, "val", read_predictions(tmp_path), None)[0]) == [1.0] * 4


def test_a_damaged_picture_is_one_line(refer, truths, tmp_path):
    name = "_".join(next(iter(truths)))
    for content in (b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(40)):
        (tmp_path / f"{name}.png").write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as a PNG"):
            score(refer, "val", read_predictions(tmp_path), None)


def test_an_id_from_the_data_stays_inside_the_folder(tmp_path):
    """`../../victim/photo` once replaced a file elsewhere; such a file is read back under the id it stands for."""
    hostile = [("../../victim/photo", "/etc/x"), ("a_b", "\0"), ("..", ""), ("C:\\x", "ü"), (7, 8)]
    prediction = Prediction(encode_mask(np.eye(8, dtype=bool)), 0.5)
    samples = [{"ref_id": ref_id, "sent_id": sent_id, "image_id": 1, "sentence": "x"} for ref_id, sent_id in hostile]
    write_predictions(tmp_path / "a/b/out", samples, [prediction] * len(samples), pngs=True)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.parent for path in written} == {tmp_path / "a/b/out"} and len(written) == len(hostile) + 1
    (tmp_path / "a/b/out/predictions.json").unlink()
    assert read_predictions(tmp_path / "a/b/out").keys() == {tuple(map(str, pair)) for pair in hostile}
    assert png_name(7, 8) == "7_8.png"   # plain ids look as they are


def test_the_command_prints_and_writes_what_test_py_does(toy, truths, tmp_path, monkeypatch, capsys):
    (tmp_path / "p.json").write_text(json.dumps(entries(truths)[1:]))
    flags = ["--predictions", tmp_path / "p.json", "--split", "val", "--refer_data_root", toy, "--results",
             tmp_path / "r.json", "--latex"]
    monkeypatch.setattr("sys.argv", ["score_predictions.py", *map(str, flags)])
    threads = torch.get_num_threads()
    score_predictions.main()
    torch.set_num_threads(threads)
    said = capsys.readouterr().out
    assert "Mean IoU is 75.00" in said and "1 of 4 samples have no prediction" in said and r"75.00 \\" in said
    results = json.loads((tmp_path / "r.json").read_text())
    assert results["mIoU"] == 75 and results["missing"] == 1 and results["breakdowns"]["category"]


# What goes along with the evaluation


def logits_of(*masks: np.ndarray) -> torch.Tensor:
    margin = torch.from_numpy(np.stack(masks)).float() * 4 - 2
    return torch.stack([torch.zeros_like(margin), margin], dim=1)


def test_masks_are_kept_and_written(tmp_path):
    masks = [np.eye(8, dtype=bool), np.zeros((8, 8), dtype=bool)]
    recorder = Recorder(None, keep=True)
    recorder([5], logits_of(masks[0]))
    recorder([3], logits_of(masks[1]))
    assert len(recorder.rows()) == 0 and recorder.predictions.keys() == {3, 5}
    assert np.array_equal(recorder.predictions[5].mask(), masks[0])
    assert recorder.predictions[5].score == pytest.approx(1 / (1 + np.exp(-2)), rel=1e-5)
    assert recorder.predictions[3].score == 0
    samples = [{"ref_id": 7, "sent_id": "a", "image_id": 1, "sentence": "x"}]
    write_predictions(tmp_path / "out", samples, [recorder.predictions[5]], pngs=True)
    entry, = json.loads((tmp_path / "out/predictions.json").read_text())
    assert entry == {**samples[0], "score": pytest.approx(0.8808), "segmentation": encode_mask(masks[0])}
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out/7_a.png")), masks[0] * 255)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_predictions(tmp_path / "file", samples, [Prediction(encode_mask(masks[0]), 0.5)], pngs=False)


def test_original_size_is_the_masks_own():
    """Logits of 8 × 8 px go up to masks of 16 × 32 and 8 × 8 before they are compared."""
    half = np.zeros((8, 8), dtype=bool)
    half[:, :4] = True
    originals = {0: np.repeat(np.repeat(half, 2, axis=0), 4, axis=1).astype(np.uint8), 1: half.astype(np.uint8)}
    recorder = Recorder(originals.__getitem__, keep=True)
    recorder([0, 1], logits_of(half, half))
    rows = recorder.rows()
    assert rows[:, :4].tolist() == [[0, 256, 256, 256], [1, 32, 32, 32]]
    assert recorder.predictions[0].segmentation["size"] == [16, 32]


def test_a_picture_of_probabilities_or_of_jpegs_edges_is_no_mask(refer, truths, tmp_path):
    for (ref_id, sent_id), mask in truths.items():
        pixels = mask.astype(np.uint8) * 255
        pixels[0, :2] = 1, 254
        Image.fromarray(pixels).save(tmp_path / f"{ref_id}_{sent_id}.png")
    with pytest.raises(UserError, match="has more than two values: a mask has 0 and one other"):
        score(refer, "val", read_predictions(tmp_path), None)


def test_what_is_scored_is_said(toy, truths, tmp_path, monkeypatch, capsys):
    for ref_id, sent_id in truths:
        Image.new("L", (64, 64)).save(tmp_path / f"{ref_id}_{sent_id}.png")
    (tmp_path / "predictions.json").write_text(json.dumps(entries(truths)))
    monkeypatch.setattr("sys.argv", ["score_predictions.py", "--predictions", str(tmp_path), "--refer_data_root",
                                     str(toy), "--split", "val"])
    score_predictions.main()
    assert f"scoring the masks in {tmp_path / 'predictions.json'}, not the PNGs beside it" in capsys.readouterr().out
    (tmp_path / "predictions.json").unlink()
    score_predictions.main()
    said = capsys.readouterr().out
    assert f"scoring 4 PNGs of {tmp_path}" in said and "WARNING: all 4 predictions are empty" in said
