"""Image files are opened in one way, which starts no program, and their content decides on their format."""
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from data import EvalSet
from lib.imagery.pictures import read_picture
from refer.masks import BadImage, read_mask_picture
from refer.refer import REFER
from tests.launch import ROOT
from utils import UserError
from utils.image_files import FORMATS, known_formats, open_image

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.fixture
def programs(tmp_path, monkeypatch) -> Path:
    """A file in which stand-ins for the programs that Pillow may start note that they were called."""
    called, folder = tmp_path / "called", tmp_path / "bin"
    folder.mkdir()
    for name in ("gs", "gswin64c", "djpeg", "cjpeg", "ppmtogif", "ppmquant", "giftopnm", "xv", "display"):
        (folder / name).write_text(f"#!/bin/sh\necho {name} >> {called}\nexit 1\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return called


@pytest.mark.parametrize("name", ["photo.jpg", "photo.eps", "photo.png"])
def test_postscript_is_refused_and_no_program_is_started(tmp_path, programs, name):
    (tmp_path / name).write_bytes(POSTSCRIPT)
    with pytest.raises(UserError, match=rf"{name} cannot be read as an image: it is none of JPEG, PNG, TIFF"):
        read_picture(tmp_path / name)
    with pytest.raises(ValueError, match="cannot be read"):
        read_mask_picture(str(tmp_path / name))
    with pytest.raises(UnidentifiedImageError):
        open_image(tmp_path / name)
    assert not programs.exists()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "JPEG2000", "PPM"])
def test_the_formats_that_people_have_are_read_whatever_their_name(tmp_path, programs, kind):
    Image.new("RGB", (9, 7), (200, 100, 50)).save(path := tmp_path / "a.dat", kind)
    with open_image(path) as opened:
        assert opened.format == kind and opened.convert("RGB").size == (9, 7)
    assert not programs.exists()


@pytest.mark.parametrize("kind", ["TGA", "PCX", "ICO", "SGI"])
def test_other_formats_are_not(tmp_path, kind):
    Image.new("RGB", (16, 16)).save(path := tmp_path / "a.png", kind)
    with pytest.raises(UnidentifiedImageError):
        open_image(path)


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png cannot be read as an image: .*a\.png is no regular file"):
        read_picture(tmp_path / "a.png")


def test_this_build_of_pillow_reads_what_is_promised():
    assert set(FORMATS) - {"AVIF"} <= set(known_formats())


def test_every_file_is_opened_here():
    """PNG alone, with its format given, may be opened elsewhere."""
    opens = re.compile(r"\bImage\.open\((?!.*formats=)")
    files = [path for path in ROOT.rglob("*.py") if not {".venv", "tests"} & {*path.relative_to(ROOT).parts}]
    assert len(files) > 100
    found = {path.name for path in files for line in path.read_text().splitlines()
             if opens.search(line) and "io.BytesIO(self.jpeg)" not in line and not line.strip().startswith('"""')}
    assert not found


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_a_data_sets_picture_of_more_bits_is_refused(toy, tokenizer, tmp_path, mode, monkeypatch):
    """Pillow's conversion would cut every value above 255."""
    kind, suffix = {"I;16": (np.uint16, "png"), "I": (np.int32, "tif"), "F": (np.float32, "tif")}[mode]
    Image.fromarray(np.full((64, 64), 3000, kind)).save(path := tmp_path / f"deep.{suffix}")
    refs = EvalSet(REFER(toy, "rrsisd"), "val", tokenizer, 32)
    monkeypatch.setattr(type(refs.table), "image_path", lambda *_: str(path))
    with pytest.raises(BadImage, match=r"it has more than 8 bits in a channel, .*: save it with 8 bits first"):
        refs[0]


def saved(folder: Path, image: Image.Image) -> str:
    image.save(path := folder / "mask.png")
    return str(path)


SQUARE = np.zeros((8, 8), np.uint8)
SQUARE[2:5, 2:6] = 1


@pytest.mark.parametrize("above", [0, 50])
def test_masks_of_one_bit_and_of_palettes_are_read_as_they_look(tmp_path, above):
    palette = Image.fromarray(SQUARE, "P")
    palette.putpalette([0, 0, 0, 255, 255, 255])
    inverted = Image.fromarray(1 - SQUARE, "P")
    inverted.putpalette([255, 255, 255, 0, 0, 0])
    for image in (Image.fromarray(SQUARE * 255), Image.fromarray(SQUARE.astype(bool)), palette, inverted):
        assert np.array_equal(read_mask_picture(saved(tmp_path, image), above), SQUARE)


def test_a_mask_that_means_something_else_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="has no value above 50, which the object has in this format, but values of 1"):
        read_mask_picture(saved(tmp_path, Image.fromarray(SQUARE)), 50)
    blue = Image.merge("RGB", [Image.fromarray(SQUARE * value) for value in (0, 0, 255)])
    alpha = Image.merge("LA", [Image.fromarray(SQUARE * 0), Image.fromarray(SQUARE * 255)])
    for image in (blue, alpha):
        with pytest.raises(ValueError, match="is 0 everywhere in its first channel, the only one that is read, but"):
            read_mask_picture(saved(tmp_path, image))


def test_an_empty_mask_is_no_error_of_its_own(tmp_path):
    assert not read_mask_picture(saved(tmp_path, Image.fromarray(SQUARE * 0)), 50).any()
