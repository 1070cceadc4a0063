"""Tables as text, for papers and pages: Markdown, and LaTeX with the rules of the package booktabs."""
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

ESCAPED = {character: "\\" + character for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "±": r"$\pm$", "−": "$-$", "[": "{[}"}   # [ after \\ would begin its argument

Places = Collection[tuple[int, int]]   # of cells: (row, column)


class Table(NamedTuple):
    """Heading and rows of cells, which have its length; `bold` are the places of cells in bold."""

    heading: Sequence[str]
    rows: Sequence[Sequence[str]]
    bold: Places = ()


def markdown(heading: Sequence[str], rows: Sequence[Sequence[str]], bold: Places = ()) -> str:
    """The table in Markdown, the cells of `bold` in bold; a bar inside a cell is escaped."""
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |"
             for line in (heading, *_marked(rows, bold, lambda cell: cell, "**{}**"))]
    return "\n".join([lines[0], f"|{'---|' * len(heading)}", *lines[1:]])


def latex(heading: Sequence[str], rows: Sequence[Sequence[str]], bold: Places = ()) -> str:
    r"""The table as a `tabular`, which needs \usepackage{booktabs}; special characters are escaped.

    The first column is flush left, the others flush right; the cells of `bold` are in bold.
    """
    columns = "l" + "r" * (len(heading) - 1)
    lines = [" & ".join(line) + r" \\" for line in ([escaped(cell) for cell in heading],
                                                    *_marked(rows, bold, escaped, r"\textbf{{{}}}"))]
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule", *lines[1:],
                      r"\bottomrule", r"\end{tabular}"])


def escaped(text: str) -> str:
    """The text as LaTeX prints it."""
    return "".join(ESCAPED.get(character, character) for character in text)


def best_in_column(values: Sequence[Sequence[float | None]], first: int = 1, digits: int = 2) -> set[tuple[int, int]]:
    """The places of each column's largest values, equal ones together; none in a column of equal values.

    `values` are rows, whose first value is in column `first` of the table. Values that print alike are equal.
    """
    found = set()
    for column in range(len(values[0]) if values else 0):
        shown = {row: round(value, digits) for row, line in enumerate(values) if (value := line[column]) is not None}
        if len(set(shown.values())) > 1:
            found |= {(row, first + column) for row, value in shown.items() if value == max(shown.values())}
    return found


def _marked(rows: Sequence[Sequence[str]], bold: Places, write: Callable[[str], str],
            form: str) -> list[list[str]]:
    """Every cell as `write` gives it, those of `bold` inserted into `form`."""
    return [[form.format(write(cell)) if (row, column) in bold else write(cell) for column, cell in enumerate(line)]
            for row, line in enumerate(rows)]


STYLES = {"markdown": markdown, "latex": latex}   # by the names of test.py's flags
