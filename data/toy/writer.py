"""A toy RRSIS-D: procedural aerial scenes with sentences, in RRSIS-D's own layout and field names.

Data sheet
    Scenes      textured land (grass, soil or sand), roads and lakes; 3 or 4 objects that never touch.
    Categories  eight of RRSIS-D's twenty (`CATEGORIES`), each with a shape of its own and 3 or 4 colours,
                no two objects of one category in the same one.
    References  two per image, to two objects, each of a category that occurs at least twice in the scene, so
                that the category alone never tells which object is meant. One sentence per reference.
    Sentences   a third each: attribute ("The large gray storage tank"), position ("A ship on the lower
                left"), relation ("The vehicle to the right of the small airplane").
    Splits      by image: 80 % train, 10 % val, 10 % test.
    Format      `refs(unc).p`, `instances.json` (masks as compressed RLE), JPEG images; and a small BERT's
                config with a WordPiece vocabulary that holds every word.

`data/toy/scenes.py` defines what the sentences mean; `data/toy/drawing.py` paints the scenes.

The same seed gives the same bytes. Annotations do not depend on Pillow: pycocotools rasterises the masks.
"""
import json
import os
import shutil
from pathlib import Path

import numpy as np

from bert.from_scratch import write_text_encoder
from data.toy.layouts import LAYOUTS, PICTURE_FOLDERS, TEXT_FILES, shots, write_refer
from data.toy.scenes import grammar_words
from utils import UserError

MARKER = "toy_rrsisd.json"  # marks a folder as a toy set, so that no other folder is ever replaced
FILES = {MARKER, "rrsisd/refs(unc).p", "rrsisd/instances.json", "bert/config.json", "bert/vocab.txt",
         "bert/tokenizer_config.json"}
IMAGE_FOLDER = "images/rrsisd/JPEGImages"


def make_toy_rrsisd(out_dir: str | os.PathLike, images: int = 1000, size: int = 128, seed: int = 0,
                    layout: str = "rrsisd", contents: str = "mixed") -> None:
    """Writes a toy set of `images` images of size x size pixels into the folder `out_dir`.

    It serves as `--refer_data_root OUT --dataset rrsisd --ck_bert OUT/bert --bert_tokenizer OUT/bert`; `layout` names
    another data set of `data.toy.layouts`; the same scenes are then written in its layout. `contents` is a row of
    `data.toy.scenes.CONTENTS`. The set is written beside `out_dir` and moved there when complete; an older toy set
    there is replaced. Raises UserError for impossible numbers, or if `out_dir` holds anything other than a toy set.
    """
    for name, value, least in (("images", images, 10), ("size", size, 64), ("seed", seed, 0)):
        if value < least:
            raise UserError(f"A toy set with {name} {value} is impossible: give --{name} at least {least}.")
    out = Path(out_dir).resolve()
    refuse_unless_free(out)
    partial, old = (out.with_name(f".{out.name}.{what}-{os.getpid()}") for what in ("partial", "old"))
    try:
        partial.mkdir(parents=True)
        write = write_refer if layout == "rrsisd" else LAYOUTS[layout]
        write(partial, shots(draw_splits(images, seed), size, seed, contents))
        write_text_encoder(partial / "bert", grammar_words())
        other = {} if layout == "rrsisd" else {"layout": layout}
        if contents != "mixed":
            other["contents"] = contents
        write_json(partial / MARKER, {"images": images, "size": size, "seed": seed, **other})
        if out.exists():
            out.rename(old)
        partial.rename(out)
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)


def is_toy(folder: str | os.PathLike) -> bool:
    """Whether `folder`, a `--refer_data_root`, holds a toy set: its scores say nothing of RRSIS-D."""
    return (Path(folder) / MARKER).is_file()


def refuse_unless_free(out: Path) -> None:
    """Raises UserError unless `out` is absent, an empty folder, or a toy set and nothing else."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give --out the name of a folder.")
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()}
    pictures = (f"{IMAGE_FOLDER}/", *(f"{folder}/" for folders in PICTURE_FOLDERS.values() for folder in folders))
    foreign = [name for name in found - FILES.union(*TEXT_FILES.values()) if not name.startswith(pictures)]
    if found and (foreign or MARKER not in found):
        raise UserError(f"{out} is not empty and not just a toy set (found {min(foreign or found)}): "
                        "give --out another folder, or empty this one.")


def write_json(path: Path, content: dict) -> None:
    """Writes UTF-8 JSON that ends with a line break."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def draw_splits(images: int, seed: int) -> list[str]:
    """Each image's split: a tenth val, a tenth test, the rest train."""
    order = np.random.default_rng(np.random.SeedSequence(seed)).permutation(images)
    tenth = images // 10
    return ["val" if place < tenth else "test" if place < 2 * tenth else "train" for place in order]
