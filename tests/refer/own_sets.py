"""Small data sets of one's own, for tests."""
import json
from pathlib import Path

import numpy as np
from PIL import Image

from tools import import_dataset

WIDTH, HEIGHT = 12, 8
SENTENCES = ("the white roof", "a large building")


def mask_of(number: int) -> np.ndarray:
    """A ring, whose hole is not the object's, and a part apart from it: (H, W) uint8 of 0 and 1."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[1:6, 1:6] = 1
    mask[2:4, 2 + number % 3] = 0
    mask[7, 9:] = 1
    return mask


def write_picture(path: Path, number: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    """A picture that differs from those of other numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (number, 200 - number, 77)).save(path)


def write_source(folder: Path, pictures: int = 10, header: str = "image,mask,sentence", sentences: tuple = SENTENCES,
                 first: int = 0) -> Path:
    """Pictures 0.png, …, a mask for each in masks/, and refs.csv with a row for each sentence."""
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    lines = [header]
    for number in range(pictures):
        write_picture(folder / f"{number}.png", first + number)
        Image.fromarray(mask_of(number) * np.uint8(255)).save(folder / f"masks/{number}.png")
        lines += [f"{number}.png,masks/{number}.png,{sentence}" for sentence in sentences]
    (folder / "refs.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "refs.csv"


def write_rows(folder: Path, *rows: dict) -> Path:
    """A JSON Lines file of these rows."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "refs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def import_to(out: Path, *words: object) -> Path:
    """What `python tools/import_dataset.py WORDS… --out OUT` writes."""
    assert import_dataset.main([*map(str, words), "--out", str(out)]) == 0
    return out
