"""Tables as text, for papers and pages: Markdown, and the rows of a LaTeX table with booktabs' rule."""
from collections.abc import Sequence

ESCAPED = {character: "\\" + character for character in "&%$#_{}"} | {"\\": r"\textbackslash ", "±": r"$\pm$"}


def markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table in Markdown; a bar inside a cell is escaped."""
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in (heading, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(heading)}", *lines[1:]])


def latex(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The rows of the table in LaTeX, with special characters escaped; the first row names the columns."""
    lines = [" & ".join("".join(ESCAPED.get(character, character) for character in cell) for cell in line) + r" \\"
             for line in (heading, *rows)]
    return "\n".join([lines[0], r"\midrule", *lines[1:]])


STYLES = {"markdown": markdown, "latex": latex}   # by the names of test.py's flags
