"""Published figures: the project's own tables, the choice of rows, and files that are refused."""
import csv

import pytest

from lib.evaluation.published import (
    FOLDER,
    HEADER,
    Published,
    describe,
    published_row,
    published_rows,
    read_published,
)
from refer.layouts import DATASETS
from refer.published import other_size
from utils import UserError

ROW = {"dataset": "rrsisd", "method": "A", "year": "2024", "oIoU": "70", "source": "Table 1 of its paper"}


@pytest.fixture
def written(tmp_path):
    """written(*rows) -> a folder with one file of these rows; a row is a dict of cells, the others stay empty."""
    def write(*rows: dict[str, str]):
        with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, HEADER, restval="")
            writer.writeheader()
            writer.writerows(rows)
        return tmp_path
    return write


# The tables of this project

def test_a_figure_as_its_source_states_it():
    row = published_row("rmsin", "rrsisd", "val", "unc")
    assert (row.method, row.year, row.backbone, row.oIoU, row.mIoU) == ("RMSIN", 2024, "Swin-B", 78.27, 65.10)
    assert row.precision == {"0.5": 74.66, "0.6": 68.22, "0.7": 57.41, "0.8": 45.29, "0.9": 24.43}
    assert "github.com/Lsan2401/RMSIN/issues/11" in row.source


def test_every_row_can_be_true():
    """Shares of sentences fall with the threshold, the mean of their IoUs follows from them, names are unique."""
    rows = read_published()
    assert len(rows) >= 20
    for row in rows:
        shares = list(row.precision.values())
        assert shares == sorted(shares, reverse=True), row
        if len(shares) == 5 and row.mIoU:
            low, high = 0.5 * shares[0] + 0.1 * sum(shares[1:]), 50 + 0.1 * sum(shares)   # the integral of P@X
            assert low < row.mIoU < high, row
        if row.dataset in DATASETS:
            divisions = DATASETS[row.dataset].splits
            assert row.split_by in ("", *divisions), row
            assert row.split in ("", *(split for splits in divisions.values() for split in splits)), row
    keys = [(row.dataset, row.split_by, row.split, row.method) for row in rows]
    assert len(set(keys)) == len(keys)


def test_every_figure_has_a_source_and_doubtful_ones_say_so():
    for row in read_published():
        assert row.source and row.source in row.note
        if "third party" in row.source:
            assert "not checked against" in row.remark, row
        if not row.split:
            assert "the source names no split" in row.note


def test_each_file_has_the_name_of_its_data_set():
    for path in FOLDER.glob("*.csv"):
        assert {line.split(",")[0] for line in path.read_text().splitlines()[1:]} == {path.stem}


# The choice of rows

def test_rows_of_the_split_come_before_those_without_one(written):
    folder = written({**ROW, "method": "unnamed"}, {**ROW, "method": "B", "split": "val"},
                     {**ROW, "method": "C", "split": "test"}, {**ROW, "method": "D", "dataset": "refsegrs"})
    assert [row.method for row in published_rows("rrsisd", "val", folder=folder)] == ["B", "unnamed"]
    assert published_rows("toy", "val", folder=folder) == []


def test_another_division_into_splits_is_another_split(written):
    folder = written({**ROW, "splitBy": "google", "split": "val"}, {**ROW, "split": "val", "method": "both"})
    assert [row.method for row in published_rows("rrsisd", "val", "google", folder)] == ["A", "both"]
    assert [row.method for row in published_rows("rrsisd", "val", "umd", folder)] == ["both"]


def test_the_row_of_a_model_is_the_methods_own_on_that_very_split(written):
    folder = written({**ROW, "method": "RMSIN"}, {**ROW, "method": "RMSIN, rerun", "split": "val"},
                     {**ROW, "method": "RMSIN", "split": "val", "oIoU": "71.5"})
    assert published_row("rmsin", "rrsisd", "val", folder=folder).oIoU == 71.5
    assert published_row("rmsin", "rrsisd", "test", folder=folder) is None
    assert published_row("lgce", "rrsisd", "val", folder=folder) is None


def test_what_a_source_does_not_state_is_absent_and_not_zero(written):
    row, = read_published(written({**ROW, "P@0.7": "0", "remark": "best epoch on test"}))
    assert row == Published("rrsisd", "", "", "A", 2024, "", {"oIoU": 70.0, "P@0.7": 0.0}, "Table 1 of its paper",
                            "best epoch on test")
    assert (row.mIoU, row.precision) == (None, {"0.7": 0.0})
    assert row.note == "the source names no split; best epoch on test; source: Table 1 of its paper"


# Beside one's own figures

METRICS = {"oIoU": 61.9, "mIoU": 64.654, "precision": {"0.5": 76, "0.6": 66, "0.7": 54, "0.8": 33, "0.9": 8}}


def test_published_rows_are_marked_and_explained_below_ones_own(written):
    row = {**ROW, "split": "val", "backbone": "Swin-B", "P@0.7": "58.3", "remark": "old masks"}
    rows = read_published(written(row))
    said = describe(rows, "rrsisd", "val", "rmsin", METRICS, warning="another size").splitlines()
    assert said == [
        "beside published figures of rrsisd, split val, whose protocols differ (see the notes):",
        "| Method | Prec@0.5 | Prec@0.6 | Prec@0.7 | Prec@0.8 | Prec@0.9 | oIoU | mIoU |",
        "|---|---|---|---|---|---|---|---|",
        "| rmsin, this run | 76.00 | 66.00 | 54.00 | 33.00 | 8.00 | 61.90 | 64.65 |",
        "| A (Swin-B, 2024), published (1) |  |  | 58.30 |  |  | 70.00 |  |",
        "(1) A: old masks; source: Table 1 of its paper.", "another size"]
    assert r"A (Swin-B, 2024), published (1) &" in describe(rows, "rrsisd", "val", "rmsin", METRICS, ["latex"])


def test_nothing_published_is_said_in_one_line():
    assert describe([], "toy", "val", "rmsin", METRICS, warning="another size") == (
        "no published figures of toy, split val, are in docs/reference; a line in a file there adds some")


@pytest.mark.parametrize(("dataset", "split_by", "split", "refs", "said"), [
    ("rrsisd", "unc", "test", 3_481, ""), ("toy", "unc", "test", 5, ""), ("refcocog", "google", "val", 5, ""),
    ("rrsisd", "unc", "test", 20, "RRSIS-D's test split has 3,481 refs, this one 20: published figures are"),
    ("refsegrs", "own", "val", 400, "RefSegRS's val split has 431 sentences, this one 800:")])
def test_a_split_of_another_size_is_told(dataset, split_by, split, refs, said):
    assert other_size(dataset, split_by, split, refs, 2 * refs).startswith(said)
    assert bool(said) == bool(other_size(dataset, split_by, split, refs, 2 * refs))


# Files that are refused

@pytest.mark.parametrize(("change", "message"), [
    ({"source": ""}, "line 3 has no source, which every row needs"),
    ({"method": " "}, "line 3 has no method"),
    ({"year": "24"}, "line 3: year must be a year, but is '24'"),
    ({"mIoU": "65,1"}, "line 3: mIoU must be a number in percent, 0 to 100, or empty, but is '65,1'"),
    ({"P@0.9": "120"}, "P@0.9 must be a number in percent"),
    ({"mIoU": "nan"}, "mIoU must be a number in percent"),
    ({"mIoU": "-3"}, "mIoU must be a number in percent"),
    ({"oIoU": ""}, "line 3 has no figure"),
])
def test_a_wrong_row_is_refused_with_its_line(written, change, message):
    folder = written(ROW, {**ROW, **change})
    with pytest.raises(UserError, match=r"a\.csv, ") as refused:
        read_published(folder)
    assert message in str(refused.value)


@pytest.mark.parametrize(("content", "message"), [
    (b"dataset;split\n", r"line 1 is 'dataset;split', but must be dataset,splitBy,split,method"),
    (b"", "line 1 is ''"),
    (",".join(HEADER).encode() + b"\nrrsisd,,val,RMSIN, rerun,2024\n", "line 2 has 6 cells, but must have 15"),
    (",".join(HEADER).encode() + b'\n"rrsisd', "cannot be read"),
    (b"\xff\xfe", "cannot be read"),
])
def test_a_file_of_another_kind_is_refused(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_published(tmp_path)
