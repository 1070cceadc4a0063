"""Published figures, docs/reference/*.csv: read, chosen by data set and split, and set beside one's own rows.

This module imports neither torch nor numpy. All figures are in percent.
"""
import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lib.evaluation.text_tables import STYLES
from utils import UserError, printable

FOLDER = Path(__file__).resolve().parents[2] / "docs/reference"
THRESHOLDS = ("0.5", "0.6", "0.7", "0.8", "0.9")
METRICS = ("oIoU", "mIoU", *(f"P@{x}" for x in THRESHOLDS))
HEADER = ("dataset", "splitBy", "split", "method", "year", "backbone", *METRICS, "source", "remark")
NEEDED = ("dataset", "method", "year", "source")   # columns that no row leaves empty
EARLIEST, LATEST = 2000, 2100   # years


@dataclass(frozen=True)
class Published:
    """A row: what a paper, or a document that quotes it, states for a method on a split of a data set.

    `dataset` is the flag's value; `split_by` is '' for data sets with one division into splits; `split` is '' where
    the source names none. `figures` has those of `METRICS` that the source states. `source` is where the figures were
    read, `remark` what differs in their protocol, or ''.
    """

    dataset: str
    split_by: str
    split: str
    method: str
    year: int
    backbone: str
    figures: Mapping[str, float]
    source: str
    remark: str

    @property
    def oIoU(self) -> float | None:
        """The overall IoU, or None if the source does not state it."""
        return self.figures.get("oIoU")

    @property
    def mIoU(self) -> float | None:
        """The mean IoU, or None if the source does not state it."""
        return self.figures.get("mIoU")

    @property
    def precision(self) -> dict[str, float]:
        """{threshold: Prec@X}, '0.5' to '0.9', as far as the source states them."""
        return {x: self.figures[f"P@{x}"] for x in THRESHOLDS if f"P@{x}" in self.figures}

    @property
    def note(self) -> str:
        """Remark and source as one line."""
        unnamed = "" if self.split else "the source names no split"
        return "; ".join(part for part in (unnamed, self.remark, f"source: {self.source}") if part)


def read_published(folder: Path = FOLDER) -> list[Published]:
    """The rows of all CSV files of a folder, in the files' order. Raises `UserError` naming file and line."""
    return [row for path in sorted(folder.glob("*.csv")) for row in _rows(path)]


def published_rows(dataset: str, split: str, split_by: str = "", folder: Path = FOLDER) -> list[Published]:
    """The rows of a split, followed by those of the data set whose source names no split.

    `split_by` is the flag's value; it matters for rows that state a division into splits.
    """
    rows = [row for row in read_published(folder)
            if row.dataset == dataset and row.split_by in ("", split_by) and row.split in ("", split)]
    return sorted(rows, key=lambda row: not row.split)


def published_row(model: str, dataset: str, split: str, split_by: str = "",
                  folder: Path = FOLDER) -> Published | None:
    """The row of a `--model` under the method's own name on exactly this split, or None if no source was read."""
    return next((row for row in published_rows(dataset, split, split_by, folder)
                 if row.split and row.method.lower() == model), None)


def beside(rows: Sequence[Published], columns: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """The rows as cells, to be set below one's own, and a note for each, which its name refers to by number.

    The first cell is the name; the others are the figures of `columns`, a metric of `METRICS` or 'Prec@X' each; a
    column of another name, and a figure that the source does not state, stays empty.
    """
    cells, notes = [], []
    for number, row in enumerate(rows, start=1):
        origin = ", ".join(part for part in (row.backbone, str(row.year)) if part)
        figures = [row.figures.get(column.replace("Prec@", "P@")) for column in columns]
        cells.append([f"{row.method} ({origin}), published ({number})",
                      *("" if value is None else f"{value:.2f}" for value in figures)])
        notes.append(f"({number}) {row.method}: {row.note}.")
    return cells, notes


def describe(rows: Sequence[Published], dataset: str, split: str, model: str, metrics: Mapping[str, Any],
             styles: Sequence[str] = (), warning: str = "") -> str:
    """The lines of `test.py --compare_published`: a table of the model's metrics and the rows, then a note for each.

    `metrics` are those of `lib.evaluation.metrics.compute_metrics`; `styles` are keys of `text_tables.STYLES`, Markdown
    if there are none; the `warning` comes last.
    """
    if not rows:
        return no_rows(dataset, split)
    columns = [*(f"Prec@{x}" for x in THRESHOLDS), "oIoU", "mIoU"]
    own = [*(metrics["precision"][x] for x in THRESHOLDS), metrics["oIoU"], metrics["mIoU"]]
    cells, notes = beside(rows, columns)
    lines = [[f"{model}, this run", *(f"{value:.2f}" for value in own)], *cells]
    return "\n".join([f"beside published figures of {dataset}, split {split}, whose protocols differ (see the notes):",
                      *(STYLES[style](["Method", *columns], lines) for style in styles or ["markdown"]), *notes,
                      *([warning] if warning else [])])


def as_data(rows: Sequence[Published]) -> list[dict[str, Any]]:
    """The rows as plain data for JSON and the report page."""
    return [{**asdict(row), "note": row.note} for row in rows]


def no_rows(dataset: str, split: str) -> str:
    """The line that says that nothing is published here."""
    return f"no published figures of {dataset}, split {split}, are in docs/reference; a line in a file there adds some"


def _rows(path: Path) -> Iterator[Published]:
    """The rows of a file."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, cells) for cells in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    header = tuple(lines[0][1]) if lines else ()
    if header != HEADER:
        raise UserError(f"{path}, line 1 is '{printable(','.join(header))[:200]}', but must be {','.join(HEADER)}")
    for number, cells in lines[1:]:
        yield _row(cells, f"{path}, line {number}")


def _row(cells: Sequence[str], place: str) -> Published:
    """One row from its cells. Raises `UserError`, which begins with `place`."""
    if len(cells) != len(HEADER):
        raise UserError(f"{place} has {len(cells)} cells, but must have {len(HEADER)}: quote a cell that has a comma")
    row = {name: cell.strip() for name, cell in zip(HEADER, cells, strict=True)}
    for name in NEEDED:
        if not row[name]:
            raise UserError(f"{place} has no {name}, which every row needs")
    if not re.fullmatch(r"\d{4}", row["year"], re.ASCII) or not EARLIEST <= int(row["year"]) <= LATEST:
        raise UserError(f"{place}: year must be a year, but is '{printable(row['year'])[:40]}'")
    figures = {}
    for name in METRICS:
        if row[name]:
            if not re.fullmatch(r"\d{1,3}(\.\d{1,9})?", row[name], re.ASCII) or float(row[name]) > 100:
                raise UserError(f"{place}: {name} must be a number in percent, 0 to 100, or empty, but is "
                                f"'{printable(row[name])[:40]}'")
            figures[name] = float(row[name])
    if not figures:
        raise UserError(f"{place} has no figure, oIoU for example")
    return Published(row["dataset"], row["splitBy"], row["split"], row["method"], int(row["year"]), row["backbone"],
                     figures, row["source"], row["remark"])
