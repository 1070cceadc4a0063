"""A plain, self-contained HTML page of tables."""
import html
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from lib.evaluation.text_tables import Table
from utils import write_text

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: clamp(1rem, 3vw, 2rem); color: #222; }
div { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #222; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 8rem; max-width: 26rem;
  position: sticky; left: 0; background: #fff; }
th { white-space: normal; vertical-align: bottom; }
p { max-width: 50rem; color: #555; overflow-wrap: anywhere; }
@media (max-width: 46rem) { th, td { padding: .3rem .4rem; } }
"""


def write_tables_page(path: Path, title: str, tables: Mapping[str, Table], notes: Sequence[str]) -> None:
    """Writes the page: each table below its name, then the notes. Raises `UserError` if it cannot be written."""
    parts = [f"<!DOCTYPE html>\n<html lang=en>\n<meta charset=utf-8>\n"
             f"<meta name=viewport content='width=device-width, initial-scale=1'>\n<title>{html.escape(title)}</title>",
             f"<style>{STYLE}</style>", f"<h1>{html.escape(title)}</h1>"]
    for name, (heading, rows, bold) in tables.items():
        parts += [f"<h2>{html.escape(name)}</h2>", "<div><table>", _row(heading, "th"), *(
            _row(row, "td", [column for place, column in bold if place == number]) for number, row in enumerate(rows)),
            "</table></div>"]
    parts += [f"<p>{html.escape(note)}</p>" for note in notes]
    write_text(path, "\n".join(parts) + "\n")


def _row(cells: Sequence[str], tag: str, bold: Collection[int] = ()) -> str:
    texts = [html.escape(cell) for cell in cells]
    shown = [f"<b>{text}</b>" if column in bold else text for column, text in enumerate(texts)]
    return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in shown)}</tr>"
