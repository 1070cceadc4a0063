"""A CSV, TSV or JSON Lines file with a row for each sentence: picture, mask, sentence and what else is known."""
import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refer.importers.rows import (
    Findings,
    MaskPicture,
    Options,
    Row,
    Shape,
    file_beside,
    sentences_of,
    shape_of,
    split_name,
    split_of_file,
)
from utils import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
# What a column is: the names that it may have without --columns.
ALIASES = {
    "image": ("image", "image_path", "file_name", "filename", "picture", "img"),
    "mask": ("mask", "mask_path", "segmentation", "polygon", "polygons", "rle", "box", "bbox"),
    "sentence": ("sentence", "sentences", "sent", "caption", "expression", "referring_expression", "phrase", "text",
                 "description"),
    "split": ("split",), "category": ("category", "category_name", "class"), "id": ("id", "ref_id"),
    "instance": ("instance",), "no_target": ("no_target",)}
MOST_COLUMNS = 1000
NEEDED = ("image", "mask", "sentence")
_TRUE, _FALSE = ("1", "true", "yes"), ("", "0", "false", "no")

Cells = dict[str, Any]


def read(sources: list[str], options: Options, found: Findings) -> Iterator[Row]:
    """The rows of all files. Raises UserError for a file that cannot be read or lacks a column."""
    for source in sources:
        names, lines = lines_of(source, found)
        columns = find_columns(names, options, source)
        given = split_of_file(source) if len(sources) > 1 else ""
        for where, cells in lines:
            try:
                yield _row(where, cells, columns, options, os.path.dirname(source), given)
            except ValueError as error:
                found.refuse(where, str(error))


def lines_of(path: str, found: Findings) -> tuple[list[str], Iterator[tuple[str, Cells]]]:
    """The names of a file's columns, and its rows, each with its place. Raises UserError if it cannot be read."""
    return _csv(path, found) if path.endswith((".csv", ".tsv")) else _json_lines(path, found)


def listed(names: list[str]) -> str:
    """The names of columns for a message, cut where they are many or long."""
    return ", ".join(name[:60] for name in names[:20]) + " …" * (len(names) > 20)


def find_columns(names: list[str], options: Options, source: str, needed: tuple[str, ...] = NEEDED) -> dict[str, str]:
    """{what: the name of its column}, as --columns says or by the usual names. Raises UserError if one is missing."""
    usual = {name.strip().lower(): name for name in reversed(names)}
    columns = {}
    for what, aliases in ALIASES.items():
        if what in options.columns:
            if options.columns[what] and options.columns[what] not in names:
                raise UserError(f"--columns {what}={options.columns[what]}: {source} has no such column, but has "
                                f"{listed(names)}")
            columns[what] = options.columns[what]
        else:
            columns[what] = next((usual[alias] for alias in aliases if alias in usual), "")
    if missing := [what for what in needed if not columns[what]]:
        raise UserError(f"{source} has no column `{missing[0]}`, but has {listed(names)}: name it with --columns "
                        f"{missing[0]}=NAME")
    if options.group and options.group not in names:
        raise UserError(f"--group {options.group}: {source} has no such column, but has {listed(names)}")
    columns["group"] = options.group
    return {what: name for what, name in columns.items() if name}


def _row(where: str, cells: Cells, columns: dict[str, str], options: Options, folder: str, split: str) -> Row:
    """One row. Raises ValueError, saying what is wrong with it."""
    def cell(what: str) -> Any:
        value = cells.get(columns.get(what, ""))
        return value.strip() if isinstance(value, str) else value

    def text(what: str) -> str:
        value = cell(what)
        return "" if value is None else value if isinstance(value, str) else json.dumps(value)

    sentences = sentences_of(cell("sentence"))
    if not sentences:
        raise ValueError(f"its sentence (column {columns['sentence']}) is empty")
    if not text("image"):
        raise ValueError(f"it names no picture (column {columns['image']})")
    no_target = text("no_target").lower()
    if no_target not in (*_TRUE, *_FALSE):
        raise ValueError(f"its no_target must be true or false, but is {no_target[:40]}")
    own_split = split_name(text("split"))
    if "split" in columns and not own_split:
        raise ValueError("its split is empty, and the table has a column of splits")
    mask = Shape("[]") if no_target in _TRUE else _mask(cell("mask"), text("instance"), columns,
                                                        options.masks or folder)
    return Row(where, file_beside(options.images or folder, text("image")), sentences, mask, own_split or split,
               text("category"), text("id"), text("group"), no_target=no_target in _TRUE)


def _mask(value: Any, instance: str, columns: dict[str, str], folder: str) -> MaskPicture | Shape:
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"its mask (column {columns['mask']}) is not valid JSON: {error}") from error
    if value in (None, "", [], {}):
        raise ValueError(f"its mask (column {columns['mask']}) is empty")
    if not isinstance(value, str):
        return shape_of(value)
    if "instance" not in columns:
        return MaskPicture(file_beside(folder, value))
    try:
        return MaskPicture(file_beside(folder, value), int(float(instance)))
    except (ValueError, OverflowError) as error:
        raise ValueError(f"its {columns['instance']} must be the number of an object in its mask, but is "
                         f"'{instance[:40]}'") from error


def _csv(path: str, found: Findings) -> tuple[list[str], Iterator[tuple[str, Cells]]]:
    """The names of a table's columns, and its rows, each with its place."""
    content = read_text(path)
    header = content.partition("\n")[0]
    delimiter = "\t" if path.endswith(".tsv") else max((",", ";", "\t"), key=header.count)
    csv.field_size_limit(2**31 - 1)   # polygons and RLEs are long
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise UserError(f"{path}, line 1 cannot be read: {error}") from error
    if len(names) > MOST_COLUMNS:
        raise UserError(f"{path} has {len(names):,} columns: a table here has at most {MOST_COLUMNS}")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{path} has two columns of the name '{twice[0][:60]}'")

    def rows() -> Iterator[tuple[str, Cells]]:
        begins = reader.line_num + 1
        try:
            for cells in reader:
                where, begins = f"{path}, line {begins}", reader.line_num + 1
                if len(cells) > len(names):
                    found.refuse(where, f"it has {len(cells)} cells, but the table has {len(names)} columns: put a "
                                        f"sentence with a '{delimiter}' in quotes")
                elif any(cell.strip() for cell in cells):
                    yield where, dict(zip(names, cells, strict=False))
        except csv.Error as error:
            found.refuse(f"{path}, line {begins}", f"it cannot be read, nor what follows ({error}): a quotation mark "
                                                   "may be missing")

    return names, rows()


def _json_lines(path: str, found: Findings) -> tuple[list[str], Iterator[tuple[str, Cells]]]:
    """The names of all fields of a file of JSON objects, a line or an entry of one list each, and the objects."""
    content = read_text(path)
    entries: list[tuple[str, Any]] = []
    if content.lstrip()[:1] == "[":
        try:
            entries = [(f"{path}, entry {number}", entry) for number, entry in enumerate(json.loads(content), start=1)]
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not valid JSON: {error}") from error
    else:
        for number, line in enumerate(content.split("\n"), start=1):
            if line.strip():
                try:
                    entries.append((f"{path}, line {number}", json.loads(line)))
                except (ValueError, RecursionError) as error:
                    found.refuse(f"{path}, line {number}", f"it is no whole JSON object ({error})")
    for where, entry in entries:
        if not isinstance(entry, dict):
            found.refuse(where, "it must be a JSON object")
    objects = [(where, entry) for where, entry in entries if isinstance(entry, dict)]
    return list(dict.fromkeys(name for _, entry in objects for name in entry)), iter(objects)


def read_text(path: str) -> str:
    """The text of a file in UTF-8, with or without a mark at its beginning. Raises UserError, saying how to save it."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line} is not UTF-8: save the file as UTF-8 (a spreadsheet calls it \"CSV "
                        f"UTF-8\"; or: iconv -f windows-1252 -t utf-8 {os.path.basename(path)} > utf8.csv)") from error
