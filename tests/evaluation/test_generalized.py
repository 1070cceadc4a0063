"""Metrics of samples without a target: every cell of gRefCOCO's table, worked out by hand."""
import numpy as np
import pytest

from lib.evaluation.generalized import all_metrics, format_all, format_generalized_table, generalized_metrics
from lib.evaluation.tables import make_sample, summarize


def counts_of(predicted: int, truth: int, shared: int) -> list[int]:
    """A sample's COUNTS from the pixels of both masks and those they share; boundaries play no part."""
    return [shared, predicted + truth - shared, truth, 0, 0]


# predicted pixels, true pixels, shared pixels, no target -> IoU and I, U added, the cell; 50 pixels are a prediction
CELLS = [
    (0, 0, 0, True, (1.0, 0, 0), "true_positive"),
    (49, 0, 0, True, (1.0, 0, 0), "true_positive"),
    (50, 0, 0, True, (0.0, 0, 50), "false_negative"),
    (0, 200, 0, False, (0.0, 0, 200), "false_positive"),
    (40, 200, 30, False, (0.0, 0, 210), "false_positive"),   # U with the mask as predicted
    (100, 200, 75, False, (75 / 225, 75, 225), "true_negative"),
    (60, 0, 0, False, (0.0, 0, 60), "true_negative"),        # a target of no pixels
]


@pytest.mark.parametrize(("predicted", "truth", "shared", "no_target", "added", "cell"), CELLS)
def test_each_cell(predicted, truth, shared, no_target, added, cell):
    found = generalized_metrics(np.array([counts_of(predicted, truth, shared)]), np.array([no_target]), 50)
    iou, i, u = added
    assert found["gIoU"] == pytest.approx(100 * iou) and found["cIoU"] == pytest.approx(100 * i / max(1, u))
    assert found["counts"] == {name: int(name == cell) for name in found["counts"]}


def test_all_together():
    counts = np.array([counts_of(*row[:3]) for row in CELLS])
    found = generalized_metrics(counts, np.array([row[3] for row in CELLS]), 50)
    assert found["gIoU"] == pytest.approx(100 * (1 + 1 + 75 / 225) / 7)
    assert found["cIoU"] == pytest.approx(100 * 75 / (50 + 200 + 210 + 225 + 60))
    assert found["N_acc"] == pytest.approx(100 * 2 / 3) and found["T_acc"] == pytest.approx(100 * 2 / 4)
    assert found["precision"] == {"0.7": 0, "0.8": 0, "0.9": 0}


def test_precision_counts_targets_only_and_its_own_threshold():
    counts = np.array([counts_of(100, 100, 100), counts_of(70, 100, 70), counts_of(0, 0, 0), counts_of(69, 100, 69)])
    found = generalized_metrics(counts, np.array([False, False, True, False]), 50)
    assert found["precision"] == pytest.approx({"0.7": 200 / 3, "0.8": 100 / 3, "0.9": 100 / 3})


@pytest.mark.parametrize(("no_target", "name"), [(True, "T_acc"), (False, "N_acc")])
def test_an_accuracy_without_samples_is_0(no_target, name):
    found = generalized_metrics(np.array([counts_of(0, 0, 0)]), np.array([no_target]), 50)
    assert found[name] == 0


def test_the_flag_decides_what_is_a_prediction():
    counts, no_target = np.array([counts_of(20, 0, 0)]), np.array([True])
    assert [generalized_metrics(counts, no_target, px)["N_acc"] for px in (20, 21)] == [0, 100]


def test_they_are_reported_only_where_a_sample_has_no_target():
    counts = np.array([counts_of(100, 100, 100), counts_of(0, 0, 0)])
    assert "generalized" not in all_metrics(counts, np.array([False, False]), 50)
    metrics = all_metrics(counts, np.array([False, True]), 50)
    assert metrics["mIoU"] == 50 and metrics["generalized"]["gIoU"] == 100
    lines = format_all(metrics).splitlines()
    assert lines[0] == "Mean IoU is 50.00" and "gIoU is 100.00, cIoU is 100.00" in lines
    assert "    N-acc = 100.00, T-acc = 100.00 (no target: fewer than 50 pixels)" in lines


def test_results_have_them():
    identity = {"ref_id": 1, "sent_id": 1, "image_id": 1, "category": "x", "sentence": "a ship"}
    samples = [make_sample(identity, counts_of(100, 100, 75), 1000),
               make_sample({**identity, "no_target": True}, counts_of(20, 0, 0), 1000)]
    summary = summarize(samples, no_target_pixels=10)
    assert summary["generalized"]["N_acc"] == 0 and summary["generalized"]["gIoU"] == pytest.approx(100 * 0.6 / 2)
    assert summary["empty_masks"] == 0, "empty by design is no flaw"
    assert summarize(samples)["generalized"]["N_acc"] == 100
    assert "generalized" not in summarize(samples[:1])


def test_tables():
    metrics = generalized_metrics(np.array([counts_of(100, 100, 100), counts_of(0, 0, 0)]), np.array([False, True]), 50)
    assert format_generalized_table([("a_b", metrics)], "latex").splitlines()[-3] == (
        r"a\_b & 100.00 & 100.00 & 100.00 & 100.00 & 100.00 & 100.00 & 100.00 \\")
    assert format_generalized_table([("a|b", metrics)], "markdown").splitlines() == [
        "| Method | gIoU | cIoU | Prec@0.7 | Prec@0.8 | Prec@0.9 | N-acc | T-acc |",
        "|---|---|---|---|---|---|---|---|",
        r"| a\|b | 100.00 | 100.00 | 100.00 | 100.00 | 100.00 | 100.00 | 100.00 |"]
