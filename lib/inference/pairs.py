"""Pairs of an image and a sentence, as a file lists them or as flags name them."""
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from utils import UserError


class Pair(NamedTuple):
    """An image and a sentence; `where` names the file and the line that list them, if any."""

    image: Path
    sentence: str
    where: str = ""


def read_pairs(path: Path) -> tuple[list[Pair], list[str]]:
    """The pairs of a file, each once, and one line for each line of the file that is none.

    The file is CSV with a header that has the columns `image` and `sentence`, or JSON Lines with these keys. A relative
    image path is relative to the file's folder. Raises `UserError` if the file cannot be read or has no such header.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"--pairs {path} cannot be read: {error.strerror or error}") from error
    pairs: dict[tuple[str, str], Pair] = {}
    problems = []
    for line, entry in _json_lines(text) if text.lstrip().startswith("{") else _csv_lines(text, path):
        image, sentence = (entry.get("image"), entry.get("sentence")) if isinstance(entry, dict) else (None, None)
        if isinstance(entry, str):
            problems.append(f"{path}:{line}: {entry}")
        elif not (isinstance(image, str) and image.strip() and isinstance(sentence, str) and sentence.strip()):
            problems.append(f"{path}:{line}: a pair needs an image and a sentence, both text and not empty")
        elif re.search("[\0\ud800-\udfff]", image + sentence):
            problems.append(f"{path}:{line}: the text is not valid UTF-8")
        else:
            pairs.setdefault((image, sentence), Pair(path.parent / image, sentence, f"{path}:{line}"))
    if not pairs and not problems:
        raise UserError(f"--pairs {path} has no pair")
    return list(pairs.values()), problems


def _json_lines(text: str) -> Iterator[tuple[int, Any]]:
    """Each line's number and object, or what is wrong with it."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                entry = "the line is no JSON"
            yield number, {} if isinstance(entry, str) and entry != "the line is no JSON" else entry


LONGEST_FIELD = 100_000   # characters


def _csv_lines(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    """Each row's last line and its fields by column, or what is wrong with it."""
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield rows.line_num, f"the line is no CSV ({error})"
            continue
        if header is None:
            header = [column.strip() for column in row]
            if not {"image", "sentence"} <= set(header):
                raise UserError(f"--pairs {path} cannot be read: its first line must name the columns image and "
                                "sentence, or each line must be a JSON object with these keys")
        elif row and len(row) != len(header):
            yield rows.line_num, (f"the line has {len(row)} fields, and the header {len(header)}: a sentence with "
                                  "commas needs quotation marks")
        elif any(len(field) > LONGEST_FIELD for field in row):   # csv's own limit is one for the whole process
            yield rows.line_num, f"the line is no CSV (a field has more than {LONGEST_FIELD} characters)"
        elif row:
            yield rows.line_num, dict(zip(header, row, strict=True))


def name_outputs(pairs: Iterable[Pair]) -> dict[tuple[Path, str], str]:
    """A unique file name for each pair, from the image's name and the sentence's words."""
    names: dict[tuple[Path, str], str] = {}
    taken: dict[str, int] = {}
    for image, sentence, _ in pairs:
        if (image, sentence) in names:
            continue
        words = re.sub(r"[^\w]+", "-", sentence.lower()).strip("-")[:60].encode()[:100].decode(errors="ignore")
        stem = image.stem.encode(errors="surrogateescape")[:100].decode(errors="ignore")
        name = base = f"{stem}-{words or 'sentence'}"   # shorter than the 255 bytes that file systems allow
        while name in taken:
            taken[base] += 1
            name = f"{base}-{taken[base]}"
        taken[name] = 1
        names[image, sentence] = name
    return names
