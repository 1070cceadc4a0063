"""A plain, self-contained HTML page of tables."""
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils import write_text

Table = tuple[Sequence[str], Sequence[Sequence[str]]]   # heading, and rows of cells

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; color: #222; }
div { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #222; }
th:first-child, td:first-child { text-align: left; }
p { max-width: 50rem; color: #555; }
"""


def write_tables_page(path: Path, title: str, tables: Mapping[str, Table], notes: Sequence[str]) -> None:
    """Writes the page: each table below its name, then the notes. Raises `UserError` if it cannot be written."""
    parts = [f"<!DOCTYPE html>\n<html lang=en>\n<meta charset=utf-8>\n<title>{html.escape(title)}</title>",
             f"<style>{STYLE}</style>", f"<h1>{html.escape(title)}</h1>"]
    for name, (heading, rows) in tables.items():
        parts += [f"<h2>{html.escape(name)}</h2>", "<div><table>", _row(heading, "th"),
                  *(_row(row, "td") for row in rows), "</table></div>"]
    parts += [f"<p>{html.escape(note)}</p>" for note in notes]
    write_text(path, "\n".join(parts) + "\n")


def _row(cells: Sequence[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"
