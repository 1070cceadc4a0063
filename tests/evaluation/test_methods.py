"""Several methods with several runs: intervals and differences by hand, and the table's forms."""
import numpy as np
import pytest

from lib.evaluation.methods import Entry, cells_of, difference, over_runs, summarize_methods
from lib.evaluation.text_tables import latex as as_latex
from lib.evaluation.text_tables import markdown as as_markdown
from lib.report.tables_page import write_tables_page
from utils import UserError


def results(shift: int, samples: int = 40) -> dict:
    """Results of samples with a union of 100 px, two an image, each `shift` px better than in those of shift 0."""
    base = np.random.default_rng(0).integers(20, 60, samples)
    return {"samples": [
        {"ref_id": i, "sent_id": i, "image_id": i // 2, "sentence": "ship", "intersection": int(value) + shift,
         "union": 100, "object_px": 100, "boundary_intersection": 0, "boundary_union": 50}
        for i, value in enumerate(base)]}


def test_students_interval_by_hand():
    """1, 2, 3: mean 2, deviation 1; 4.3027 is Student's 97.5 % point with two degrees of freedom."""
    found = over_runs([1.0, 2.0, 3.0])
    assert found["mean"] == 2 and found["interval"] == pytest.approx([2 - 4.3027 / 3 ** 0.5, 2 + 4.3027 / 3 ** 0.5],
                                                                     abs=1e-4)
    assert over_runs([5.0]) == {"mean": 5.0, "interval": None}


def test_a_difference_is_of_runs_in_pairs():
    """Runs of 0, 4 and 8 px against 1, 6 and 11: every image gains the same, so only the runs leave room."""
    base, other = (Entry(name, [results(shift) for shift in shifts])
                   for name, shifts in (("a", (0, 4, 8)), ("b", (1, 6, 11))))
    found = difference(base, other)["mIoU"]
    assert found["mean"] == pytest.approx(2)
    assert found["over_runs"] == pytest.approx([2 - 4.3027 / 3 ** 0.5, 2 + 4.3027 / 3 ** 0.5], abs=1e-4)
    assert found["over_images"] == pytest.approx([2, 2])


def test_the_interval_over_images_is_of_the_mean_over_runs():
    """This holds for overall IoU, too, which divides sums: runs of very different unions weigh the same."""
    base, other = results(0), results(3)
    wide = {"samples": [{**sample, "union": 10_000, "object_px": 9_000} for sample in base["samples"]]}
    found = difference(Entry("a", [base, base]), Entry("b", [other, wide]))["oIoU"]
    low, high = found["over_images"]
    assert low < found["mean"] < high and high - low < 5


def test_runs_of_other_samples_are_refused():
    with pytest.raises(UserError, match="of different samples"):
        difference(Entry("a", [results(0)]), Entry("b", [results(0, samples=30)]))


def test_the_table(tmp_path):
    entries = [Entry("LAVT & co", [results(0), results(4)], {"parameters_m": 227.7, "gflop": 1234.5}),
               Entry("a|b <i>", [results(3)], {"parameters_m": 2.345})]
    rows = summarize_methods(entries, "LAVT & co")
    assert [row["runs"] for row in rows] == [2, 1] and rows[0]["difference"] is None
    heading, cells = cells_of(rows, "LAVT & co")
    assert heading[:4] == ["method", "runs", "parameters, M", "GFLOP an image"]   # no cost that no method has
    assert cells[0][:4] == ["LAVT & co", "2", "228", "1234"] and cells[1][2:4] == ["2.35", ""]
    mean = float(np.mean([metrics := row["metrics"]["mIoU"]["mean"] for row in rows[1:]]))
    assert cells[1][heading.index("mIoU")] == f"{mean:.2f}" and metrics == mean
    assert " ± 25.41" in cells[0][heading.index("mIoU")]   # of two runs, 4 points apart: 12.7062 · 2
    assert cells[1][heading.index("mIoU less LAVT & co's"):][:3] == ["+3.00", "", "+3.00 to +3.00"]

    markdown, latex = as_markdown(heading, cells), as_latex(heading, cells)
    assert r"| a\|b <i> |" in markdown and len(
        {line.replace(r"\|", "").count("|") for line in markdown.splitlines()}) == 1
    assert r"LAVT \& co & 2" in latex and r"$\pm$" in latex and latex.splitlines()[1] == r"\midrule"
    write_tables_page(tmp_path / "new/index.html", "A <b>", {"val": (heading, cells)}, ["1 < 2"])
    page = (tmp_path / "new/index.html").read_text()
    assert "a|b &lt;i&gt;" in page and "A &lt;b&gt;" in page and "1 &lt; 2" in page and "<i>" not in page
    assert page.count("<tr>") == 3 and "http" not in page
