"""Two results compared sample by sample."""
import json

import numpy as np
import pytest

from lib.evaluation.metrics import compute_metrics
from lib.evaluation.tables import counts_of, metric_intervals
from tools import compare_results


def results(intersections, **changes) -> dict:
    """Results of samples with a union of 100 px, two sentences an image."""
    samples = [{"ref_id": i, "sent_id": i, "image_id": i // 2, "sentence": f"ship {i}", "intersection": int(value),
                "union": 100, "object_px": 100, "boundary_intersection": int(value) // 2, "boundary_union": 50}
               for i, value in enumerate(intersections)]
    return {"split": "val", "annotations": {"refs": "abc"}, "samples": samples,
            **compute_metrics(counts_of(samples)), **changes}


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


def test_few_images_are_warned_of(compare):
    many = np.tile(BASE, 2)   # 80 images
    assert "note: 40 images are few: the intervals are narrower" in compare(results(BASE), results(BASE))[1]
    assert "are few" not in compare(results(many), results(many))[1]


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
    _, said, _, written = compare(results(BASE), results(BASE))
    assert "no sample changed" in said and written["changed_most"] == []


def test_the_order_of_samples_does_not_matter(compare):
    other = results(BASE)
    other["samples"].reverse()
    _, _, _, written = compare(results(BASE), other)
    assert written["mIoU"]["difference"] == 0 and written["mIoU"]["interval"] == [0, 0]


def test_other_annotations_are_refused_unless_asked_for(compare):
    other = results(BASE, annotations={"r": "x"})
    status, _, line, _ = compare(results(BASE), other)
    assert status == 2 and line.count("\n") == 1 and "a.json and b.json are of other annotation files" in line
    status, said, _, _ = compare(results(BASE), other, "--allow_other_data")
    assert status == 0 and "are of other annotation files" in said and "mean IoU" in said


def test_other_pictures_of_masks_are_refused_where_both_results_tell_them(compare):
    status, _, line, _ = compare(results(BASE, masks="a" * 64), results(BASE, masks="b" * 64))
    assert status == 2 and "other pictures of masks" in line
    assert compare(results(BASE, masks="a" * 64), results(BASE))[0] == 0


@pytest.mark.parametrize(("second", "message"), [
    (results(BASE[:70]), "10 are only in the first, 0 only in the second"),
    ({"mIoU": 3}, "samples must be a list"), ("no json", "cannot be read"),
    ({"samples": [{"ref_id": 1}]}, "samples[0].sent_id must be a whole number")])
def test_what_cannot_be_compared_is_one_line(compare, second, message):
    status, _, error, _ = compare(results(BASE), second)
    assert status == 2 and message in error and error.count("\n") == 1


def altered(place: int = 5, **changes) -> dict:
    """Results of which one sample is changed; a field changed to None is taken out."""
    given = results(BASE)
    sample = {**given["samples"][place], **changes}
    given["samples"][place] = {name: value for name, value in sample.items() if value is not None}
    return given


@pytest.mark.parametrize(("second", "message"), [
    (altered(intersection=101),
     "samples[5] is impossible: intersection 101, object_px 100 and union 100 are not in ascending order"),
    (altered(boundary_intersection=51),
     "boundary_intersection 51, boundary_union 50 and union 100 are not in ascending order"),
    (altered(union=-3), "samples[5].union must be a whole number, 0 to 2147483648, but is -3"),
    (altered(union=10**30), "samples[5].union must be a whole number"),
    (altered(intersection=float("nan")), "samples[5].intersection must be a whole number"),
    (altered(intersection="7"), "samples[5].intersection must be a whole number"),
    (altered(intersection=True), "samples[5].intersection must be a whole number"),
    (altered(ref_id=[1]), "samples[5].ref_id must be a whole number"),
    (altered(sentence="\ud800"), "samples[5].sentence must be a text"),
    (altered(union=None), "samples[5].union must be a whole number"),
    (altered(ref_id=4, sent_id=4), "the sample of ref_id 4, sent_id 4 occurs twice"),
    (results(BASE, samples=[]), "samples must be a list"),
    (results(BASE, annotations=[1]), "annotations must be an object"),
    ([], "must be an object with samples, but is []"),
    ("[" * 200_000, "nested too deeply")])
def test_results_that_cannot_be_are_refused_and_the_first_fault_named(compare, second, message):
    status, _, error, _ = compare(results(BASE), second)
    assert status == 2 and message in error and error.count("\n") == 1


def test_the_table_follows_from_the_samples_and_not_from_what_the_file_says(compare):
    _, said, _, _ = compare(results(BASE), results(BASE, mIoU=99.0, oIoU=99.0), "--markdown")
    first, second = (line.split("|")[2:] for line in said.splitlines() if line.startswith(("| a |", "| b |")))
    assert first == second and "99.00" not in said


def test_the_papers_table_carries_intervals_and_marks_the_better_figures(compare):
    better = results(np.minimum(BASE + 5 + np.arange(80) % 3, 100))
    _, said, _, written = compare(results(BASE), better, "--latex")
    lines = said[said.index(r"\begin{tabular}"):].splitlines()
    assert lines[0] == r"\begin{tabular}{lrrrrr}" and lines[-1] == r"\end{tabular}"
    assert lines[2] == r"Method & Prec@0.5 & Prec@0.7 & Prec@0.9 & oIoU & mIoU \\"
    first, second, difference = (line.removesuffix(r" \\").split(" & ") for line in lines[4:7])
    entry, (low, high) = written["mIoU"], metric_intervals(better["samples"])["mIoU"]
    assert second[5] == rf"\textbf{{{entry['second']:.2f} {{[}}{low:.2f}, {high:.2f}]}}"
    assert "textbf" not in first[5] and first[5].startswith(f"{entry['first']:.2f} {{[}}")
    assert difference[:4] == ["b less a", "", "", ""]
    assert difference[5] == f"{entry['difference']:+.2f} {{[}}{entry['interval'][0]:+.2f}, {entry['interval'][1]:+.2f}]"


def test_a_sentence_cannot_command_the_terminal(compare):
    hostile = altered(sentence="\x1b]0;owned\x07 ship \u202e", intersection=0)
    _, said, _, _ = compare(results(BASE), hostile)
    assert "\x1b" not in said and "\x07" not in said and r"\x1b]0;owned\x07 ship \u202e" in said
