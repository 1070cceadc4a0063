"""Several methods with several runs: intervals and differences by hand, and the table's forms."""
import numpy as np
import pytest

from lib.evaluation.methods import (
    Entry,
    cost_table,
    difference,
    difference_table,
    metric_table,
    over_runs,
    summarize_methods,
)
from lib.evaluation.published import Published
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


def test_the_tables(tmp_path):
    entries = [Entry("LAVT & co", [results(0), results(4)], {"parameters_m": 227.7, "gflop": 1234.5}),
               Entry("a|b <i>", [results(3)], {"parameters_m": 2.345})]
    rows = summarize_methods(entries, "LAVT & co")
    assert [row["runs"] for row in rows] == [2, 1] and rows[0]["difference"] is None
    costs = cost_table(rows)
    assert costs.heading == ["method", "parameters, M", "GFLOP an image"]   # no cost that no method has
    assert costs.rows == [["LAVT & co", "228", "1234"], ["a|b <i>", "2.35", ""]]
    table, notes = metric_table(rows)
    assert table.heading == ["method", "runs", "mIoU", "oIoU", "P@0.5", "P@0.7", "P@0.9"] and not notes
    mean = float(np.mean([metrics := row["metrics"]["mIoU"]["mean"] for row in rows[1:]]))
    assert table.rows[1][:3] == ["a|b <i>", "1", f"{mean:.2f}"] and metrics == mean
    assert " ± 25.41" in table.rows[0][2]   # of two runs, 4 points apart: 12.7062 · 2
    assert {(1, 2), (1, 3)} <= set(table.bold) and not {(0, 2), (0, 3)} & set(table.bold)   # 3 px better against 2
    assert min(column for _, column in table.bold) == 2   # names and runs are no figures
    differences = difference_table(rows, "LAVT & co")
    assert differences.heading[:2] == ["method", "mIoU less LAVT & co's"]
    assert [line[:4] for line in differences.rows] == [["a|b <i>", "+3.00", "", "+3.00 to +3.00"]]

    markdown, latex = as_markdown(*table), as_latex(*table)
    assert r"| a\|b <i> |" in markdown and f"**{mean:.2f}**" in markdown and len(
        {line.replace(r"\|", "").count("|") for line in markdown.splitlines()}) == 1
    assert r"LAVT \& co & 2" in latex and r"$\pm$" in latex and rf"\textbf{{{mean:.2f}}}" in latex
    write_tables_page(tmp_path / "new/index.html", "A <b>", {"val": table}, ["1 < 2"])
    page = (tmp_path / "new/index.html").read_text()
    assert "a|b &lt;i&gt;" in page and "A &lt;b&gt;" in page and "1 &lt; 2" in page and "<i>" not in page
    assert page.count("<tr>") == 3 and f"<td><b>{mean:.2f}</b></td>" in page and "http" not in page


def test_published_rows_stand_below_ones_own_and_take_no_bold():
    rows = summarize_methods([Entry("a", [results(0)]), Entry("b", [results(1)])], "a")
    published = [Published("x", "", "", "RMSIN", 2024, "Swin-B", {"oIoU": 99.0, "P@0.7": 98.5}, "Table 2", "old masks")]
    table, notes = metric_table(rows, published)
    assert table.rows[2] == ["RMSIN (Swin-B, 2024), published (1)", "", "", "99.00", "", "98.50", ""]
    assert all(row < 2 for row, _ in table.bold) and {(1, 2), (1, 3)} <= set(table.bold)
    assert notes == ["(1) RMSIN: the source names no split; old masks; source: Table 2."]
