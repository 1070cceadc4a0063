"""Which refs are trained on: exclusion lists, and whether images of a test split are among them."""
import json
import os
from pathlib import Path

import numpy as np

from refer.same_pictures import same_pictures
from refer.table import RefTable
from utils import UserError

EXCLUSIONS = Path(__file__).with_name("exclusions")


def read_exclusions(path: str | os.PathLike) -> list[str]:
    """The ids or file names of an exclusion list, one a line; what follows a '#' is a remark.

    A name that is no path is also looked for in `refer/exclusions`. Raises UserError if there is no such file.
    """
    known = EXCLUSIONS / os.fspath(path)
    chosen = known if not Path(path).is_file() and known.is_file() else Path(path)
    try:
        lines = chosen.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        lists = ", ".join(sorted(entry.name for entry in EXCLUSIONS.glob("*.txt")))
        raise UserError(f"--exclude {path} cannot be read ({error}): give a file of ids or file names, one a line, or "
                        f"one of {lists} in refer/exclusions") from error
    return [entry for entry in (line.partition("#")[0].strip() for line in lines) if entry]


def excluded(table: RefTable, rows: np.ndarray, entries: list[str]) -> tuple[np.ndarray, list[str]]:
    """Which of the rows an exclusion list names, (rows,) bool, and the entries that name none of them.

    An entry is a ref's id, its image's file name, or that name without its extension. After 'NAME:' it holds for the
    data set NAME only. Raises UserError for an id that refs of several data sets have.
    """
    wanted = dict.fromkeys(entries, False)
    ids: dict[str, int] = {}   # the data set in which an id was found
    out = np.zeros(len(rows), dtype=bool)
    for place, row in enumerate(rows.tolist()):
        source = int(table.source_of[row])
        file_name = table.texts["image_names"][table.image_of[row]]
        ref_id = str(json.loads(table.texts["ref_ids"][row]))
        for name in (ref_id, file_name, os.path.splitext(file_name)[0]):
            for entry in (name, f"{table.datasets[source]}:{name}"):
                if entry in wanted:
                    wanted[entry] = out[place] = True
        if ref_id in wanted and ids.setdefault(ref_id, source) != source:
            names = table.datasets[ids[ref_id]], table.datasets[source]
            raise UserError(f"--exclude: refs of {names[0]} and of {names[1]} have the id {ref_id}: write "
                            f"{names[0]}:{ref_id} or {names[1]}:{ref_id}")
    return out, [entry for entry, found in wanted.items() if not found]


def leaks(table: RefTable, train_rows: np.ndarray, split: str) -> list[str]:
    """A message for each pair of data sets where training refs of one show images of the other's 'test…' or 'val'.

    Images that several splits of one data set share are its authors' choice and are not reported. Known data sets
    share an image if they read the same file; data sets of one's own also if the files have the same bytes, since
    `tools/import_dataset.py` links or copies pictures.
    """
    if len(table.sources) == 1:
        return []
    tested = [name.startswith(split) for name in table.texts["splits"]]
    test_rows = np.flatnonzero(np.array(tested, dtype=bool)[table.split_of])
    trained_on, tested_on = ({number: [table.image_path(row) for row in rows[table.source_of[rows] == number].tolist()]
                              for number in range(len(table.sources))} for rows in (train_rows, test_rows))
    own = [source["is_own"] for source in table.sources]
    same = same_pictures(path for paths in (*trained_on.values(), *tested_on.values()) for path in paths) \
        if any(own) else {}
    said = []
    for number, paths in trained_on.items():
        for other, tested_paths in tested_on.items():
            if other == number:
                continue
            known_as = same if own[number] or own[other] else {}
            tested_images = {known_as.get(path, path) for path in tested_paths}
            shared = [known_as.get(path, path) for path in paths if known_as.get(path, path) in tested_images]
            if shared:
                said.append(f"{len(set(shared)):,} images of the {split} split of {table.datasets[other]} are trained "
                            f"on in {len(shared):,} of {len(paths):,} training refs of {table.datasets[number]}")
    return said
