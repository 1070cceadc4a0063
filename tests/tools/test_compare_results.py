"""Two results compared sample by sample."""
import json

import numpy as np
import pytest

from lib.evaluation.metrics import compute_metrics
from tools import compare_results


def results(intersections, **changes) -> dict:
    """Results of samples with a union of 100 px, two sentences an image."""
    samples = [{"ref_id": i, "sent_id": i, "image_id": i // 2, "sentence": f"ship {i}", "intersection": int(value),
                "union": 100, "object_px": 50, "boundary_intersection": int(value) // 2, "boundary_union": 50}
               for i, value in enumerate(intersections)]
    return {"split": "val", "annotations": {"refs": "abc"}, "samples": samples,
            **compute_metrics(compare_results.counts_of(samples)), **changes}


@pytest.fixture
def compare(tmp_path, monkeypatch, capsys):
    """compare(A, B, *flags) -> exit status, stdout, stderr, what --json wrote."""
    def run(first, second, *flags):
        for name, content in (("a", first), ("b", second)):
            (tmp_path / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["compare_results.py", "a.json", "b.json", "--json", "c.json", *flags])
        status = 0
        try:
            compare_results.main()
        except SystemExit as stop:
            status = stop.code
        said = capsys.readouterr()
        written = json.loads((tmp_path / "c.json").read_text()) if status == 0 else None
        return status, said.out, said.err, written
    return run


BASE = np.random.default_rng(0).integers(20, 80, 80)


def test_a_better_model_is_told_from_luck(compare):
    noise = np.random.default_rng(1).integers(-10, 11, 80)
    _, said, _, written = compare(results(BASE), results(BASE + 5 + noise))
    low, high = written["mIoU"]["interval"]
    assert 0 < low < written["mIoU"]["difference"] < high and "0 is outside" in said
    _, said, _, written = compare(results(BASE), results(BASE + noise - noise.mean().round().astype(int)))
    assert written["mIoU"]["interval"][0] < 0 < written["mIoU"]["interval"][1] and "0 is inside" in said


def test_overall_iou_of_equal_unions_is_mean_iou(compare):
    _, _, _, written = compare(results(BASE), results(BASE + np.arange(80) % 7))
    assert written["oIoU"]["difference"] == pytest.approx(written["mIoU"]["difference"])
    assert written["oIoU"]["interval"] == pytest.approx(written["mIoU"]["interval"], abs=1e-6)


def test_what_changed_most_comes_first(compare):
    changed = BASE.copy()
    changed[3], changed[7] = 0, 100
    _, said, _, written = compare(results(BASE), results(changed), "--changed", "2", "--markdown")
    expected = sorted([(3, -BASE[3]), (7, 100 - BASE[7])], key=lambda pair: -abs(pair[1]))
    assert [(row["ref_id"], row["change"]) for row in written["changed_most"]] == [
        (ref, pytest.approx(change)) for ref, change in expected]
    assert "of 2 that changed" in said and "| b |" in said


def test_the_order_of_samples_does_not_matter(compare):
    other = results(BASE)
    other["samples"].reverse()
    _, _, _, written = compare(results(BASE), other)
    assert written["mIoU"]["difference"] == 0 and written["mIoU"]["interval"] == [0, 0]


def test_other_annotations_are_noted(compare):
    assert "annotation files were not the same" in compare(results(BASE), results(BASE, annotations={"r": "x"}))[1]


@pytest.mark.parametrize(("second", "message"), [
    (results(BASE[:70]), "10 are only in the first, 0 only in the second"),
    ({"mIoU": 3}, "has no samples"), ("no json", "cannot be read"),
    ({"samples": [{"ref_id": 1}]}, "its samples lack boundary_intersection")])
def test_what_cannot_be_compared_is_one_line(compare, second, message):
    status, _, error, _ = compare(results(BASE), second)
    assert status == 2 and message in error and error.count("\n") == 1
