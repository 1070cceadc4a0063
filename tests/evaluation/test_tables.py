"""Tables per group and bootstrap intervals, against what can be computed by hand."""
import numpy as np
import pytest

from lib.evaluation.tables import (
    break_down,
    counts_of,
    describe_sample,
    format_table,
    metric_intervals,
    ratio_intervals,
    summarize,
)
from lib.evaluation.text_tables import Table, best_in_column, escaped, latex, markdown


def sample(intersection, union, image=0, category="ship", object_px=5, sentence="The ship"):
    counts = {"intersection": intersection, "union": union, "object_px": object_px,
              "boundary_intersection": 0, "boundary_union": 1}
    return {"ref_id": 0, "sent_id": 0, "image_id": image, "category": category, "sentence": sentence, **counts,
            **describe_sample(sentence, object_px, 1000)}


def test_the_groups_of_a_sample():
    assert describe_sample("The large ship", 9, 10_000) == {
        "kind": "attribute", "object_size": "under 0.1 %", "words": "1 to 3"}
    assert describe_sample("The ship on the left of the harbor", 10, 10_000)["object_size"] == "under 0.1 %"
    assert describe_sample("ship", 11, 10_000)["object_size"] == "0.1 to 1 %"
    assert describe_sample("ship", 10_000, 10_000)["object_size"] == "over 10 %"
    assert describe_sample("ship", 0, 10_000)["object_size"] == "empty"
    assert [describe_sample("word " * n, 1, 1)["words"] for n in (0, 3, 4, 6, 7, 9, 10, 60)] == [
        "1 to 3", "1 to 3", "4 to 6", "4 to 6", "7 to 9", "7 to 9", "10 or more", "10 or more"]


def test_a_table_has_each_groups_own_metrics():
    samples = [sample(5, 10, 0, "ship"), sample(10, 10, 1, "ship"), sample(0, 4, 2, "dam")]
    dam, ship = break_down(samples, "category")
    assert (dam["group"], dam["samples"], dam["mIoU"], dam["mIoU_interval"]) == ("dam", 1, 0, None)
    assert (ship["samples"], ship["mIoU"], ship["oIoU"], ship["precision"]["0.9"]) == (2, 75, 75, 50)
    low, high = ship["mIoU_interval"]
    assert (low, high) == (50, 100)   # of two images, either may be drawn twice


def test_groups_come_in_their_own_order():
    samples = [sample(1, 2, object_px=500), sample(1, 2, object_px=0), sample(1, 2, object_px=5)]
    assert [row["group"] for row in break_down(samples, "object_size")] == ["empty", "0.1 to 1 %", "over 10 %"]


def test_an_interval_of_many_is_the_normal_one_and_the_same_every_time():
    values = np.random.default_rng(1).random(400)
    intervals = [ratio_intervals(values[None], np.ones((1, 400)), range(400))[0] for _ in range(2)]
    assert intervals[0] == intervals[1]
    half = 1.96 * values.std() / 20
    assert intervals[0] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.1 * half)


def test_an_iou_at_a_threshold_counts_in_its_interval_too():
    """Every sample has IoU 0.5 exactly, so every drawing of them has all above 0.5 and none above 0.6."""
    intervals = metric_intervals([sample(5, 10, image) for image in range(3)])["precision"]
    assert intervals["0.5"] == [100, 100] and intervals["0.6"] == [0, 0]


def test_sentences_of_one_image_do_not_count_as_many():
    values = np.repeat(np.random.default_rng(2).random(40), 9)
    (alone,), (together,) = (ratio_intervals(values[None], np.ones((1, 360)), clusters)
                             for clusters in (range(360), np.repeat(np.arange(40), 9)))
    assert together[1] - together[0] > 2.5 * (alone[1] - alone[0])   # three times, for nine copies


def test_what_cannot_be_estimated_is_none():
    assert ratio_intervals(np.ones((2, 3)), np.ones((2, 3)), ["a"] * 3) == [None, None]
    assert ratio_intervals(np.ones((1, 2)), np.array([[0, 1]]), ["a", "b"]) == [None]   # 0 may be drawn twice


def test_every_metric_has_an_interval_around_it():
    generator = np.random.default_rng(3)
    samples = [sample(int(i), 100, image) for image, i in enumerate(generator.integers(0, 101, 60))]
    summary, intervals = summarize(samples), metric_intervals(samples)
    assert summary["intervals"] == intervals
    for name in ("mIoU", "oIoU"):
        assert intervals[name][0] < summary[name] < intervals[name][1]
    for threshold, value in summary["precision"].items():
        assert intervals["precision"][threshold][0] <= value <= intervals["precision"][threshold][1]


def test_empty_masks_and_empty_predictions_are_counted():
    samples = [sample(0, 5, object_px=5), sample(0, 5, object_px=0), sample(2, 8, object_px=5)]
    summary = summarize(samples)
    assert (summary["empty_masks"], summary["empty_predictions"]) == (1, 1)
    assert counts_of([]).shape == (0, 5)


def test_the_papers_row():
    metrics = {"precision": {"0.5": 76.0, "0.6": 66.333, "0.7": 53.667, "0.8": 33.333, "0.9": 8.333}, "oIoU": 61.9,
               "mIoU": 64.65}
    assert format_table([("rmsin_2", metrics)], "latex").splitlines() == [
        r"\begin{tabular}{lrrrrrrr}", r"\toprule",
        r"Method & Prec@0.5 & Prec@0.6 & Prec@0.7 & Prec@0.8 & Prec@0.9 & oIoU & mIoU \\", r"\midrule",
        r"rmsin\_2 & 76.00 & 66.33 & 53.67 & 33.33 & 8.33 & 61.90 & 64.65 \\", r"\bottomrule", r"\end{tabular}"]
    heading, rule, row = format_table([("rmsin", metrics)], "markdown").splitlines()
    assert heading.startswith("| Method | Prec@0.5 |") and rule.count("---") == heading.count("|") - 1
    assert row == "| rmsin | 76.00 | 66.33 | 53.67 | 33.33 | 8.33 | 61.90 | 64.65 |"


def test_bold_cells_in_both_forms():
    table = Table(["m", "x"], [["a", "1 ± 2"], ["[b]", "−3"]], {(0, 1)})
    assert markdown(*table).splitlines()[2:] == ["| a | **1 ± 2** |", "| [b] | −3 |"]
    assert latex(*table).splitlines()[4:6] == [r"a & \textbf{1 $\pm$ 2} \\", r"{[}b] & $-$3 \\"]


@pytest.mark.parametrize(("cell", "written"), [
    ("50 % & $5 #1_a {x}", r"50 \% \& \$5 \#1\_a \{x\}"), ("a\\b", r"a\textbackslash{}b")])
def test_special_characters_print_as_they_are(cell, written):
    assert escaped(cell) == written


def test_the_best_of_a_column_is_what_prints_as_the_largest():
    assert best_in_column([[1.0, 2.001], [0.5, 2.002], [None, 1.0]]) == {(0, 1), (0, 2), (1, 2)}
    assert best_in_column([[1.0, None]]) == best_in_column([[1.0], [1.001]]) == set()   # alone, all alike
    assert best_in_column([]) == set()
