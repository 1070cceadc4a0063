"""Any picture as RGB; masks over images, and their outlines."""
import struct
import warnings

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFile
from pycocotools import mask as coco_mask

from lib.imagery.drawing import overlay, sheet
from lib.imagery.pictures import read_picture, stretch, to_rgb
from lib.imagery.vectors import polygons
from utils import UserError

COLOURS = np.random.RandomState(0).randint(0, 256, (30, 40, 3), dtype=np.uint8)


def saved(tmp_path, image: Image.Image, name: str, **options) -> Image.Image:
    image.save(tmp_path / name, **options)
    return read_picture(tmp_path / name)


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.webp", "a.ppm"])
def test_eight_bit_colours_stay_as_they_are(tmp_path, name):
    options = {"lossless": True} if name.endswith("webp") else {}
    assert np.array_equal(pixels(saved(tmp_path, Image.fromarray(COLOURS), name, **options)), COLOURS)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"])
def test_every_mode_becomes_what_pillow_makes_of_it(mode):
    image = Image.fromarray(COLOURS).convert("L" if mode == "LA" else "RGB").convert(mode)
    assert np.array_equal(pixels(to_rgb(image)), np.asarray(image.convert("RGB")))


def test_what_is_transparent_is_black(tmp_path):
    """Whatever colour a transparent pixel has."""
    image = Image.fromarray(COLOURS).convert("RGBA")
    image.putalpha(Image.fromarray(np.uint8([[0] * 20 + [255] * 20] * 30)))
    shown = pixels(saved(tmp_path, image, "a.png"))
    assert not shown[:, :20].any() and np.array_equal(shown[:, 20:], COLOURS[:, 20:])


@pytest.mark.parametrize(("values", "name"), [
    (np.linspace(300, 4000, 1200).reshape(30, 40).astype(np.uint16), "a.png"),
    (np.linspace(300, 4000, 1200).reshape(30, 40).astype(np.uint16), "a.tif"),
    (np.linspace(-1, 7, 1200).reshape(30, 40).astype(np.float32), "a.tif"),
    (np.linspace(0, 90000, 1200).reshape(30, 40).astype(np.int32), "a.tif")])
def test_more_than_eight_bits_are_stretched_from_the_2nd_to_the_98th_percentile(tmp_path, values, name):
    shown = pixels(saved(tmp_path, Image.fromarray(values), name))[..., 0].ravel().astype(int)
    assert shown[0] == 0 and shown[-1] == 255 and abs(shown[600] - 128) <= 1
    assert (np.diff(shown) >= 0).all() and (shown == 0).mean() == pytest.approx(0.02, abs=0.005)


def test_values_that_are_missing_do_not_spoil_the_stretch():
    values = np.array([[np.nan, np.inf, 0.0, 10.0]] * 4)
    assert stretch(values).tolist() == [[0, 0, 0, 255]] * 4
    assert not stretch(np.full((4, 4), 7.0)).any()   # flat


def test_a_picture_lies_as_the_camera_was_held(tmp_path):
    image = Image.fromarray(COLOURS)
    exif = image.getexif()
    exif[0x0112] = 6   # held on its side
    assert np.array_equal(pixels(saved(tmp_path, image, "a.png", exif=exif)), np.rot90(COLOURS, -1))


def test_of_several_frames_the_first_counts(tmp_path):
    frames = [Image.fromarray(COLOURS), Image.new("RGB", (40, 30))]
    assert np.array_equal(pixels(saved(tmp_path, frames[0], "a.tif", save_all=True, append_images=frames[1:])), COLOURS)


def test_what_cannot_be_read_is_the_users_error(tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("hello")
    Image.fromarray(COLOURS).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:500])
    for name in ("text.png", "cut.png", "missing.png"):
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            read_picture(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(UserError, match="--tile"):
        read_picture(tmp_path / "whole.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_picture(tmp_path / "whole.png", any_size=True).size == (40, 30)
    assert Image.MAX_IMAGE_PIXELS == 500


def test_the_limit_of_pixels_is_never_lifted_for_other_threads(tmp_path, monkeypatch):
    """Not while a picture of a limited size is read, and with `any_size` only while the header is read."""
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    limits = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: limits.append(Image.MAX_IMAGE_PIXELS) or load(image))
    for any_size in (False, True):
        read_picture(tmp_path / "a.png", any_size)
    assert len(limits) >= 2 and set(limits) == {Image.MAX_IMAGE_PIXELS}


def test_an_overlay_has_a_solid_contour_and_leaves_the_rest():
    mask = np.zeros((30, 40), dtype=bool)
    mask[5:15, 10:30] = True
    drawn = overlay(COLOURS, mask, (1, 2, 3))
    assert np.array_equal(drawn[~mask], COLOURS[~mask])
    assert (drawn[5, 10:30] == (1, 2, 3)).all() and (drawn[5:15, 29] == (1, 2, 3)).all()
    assert np.array_equal(drawn[7, 12], (0.6 * COLOURS[7, 12] + 0.4 * np.array([1, 2, 3])).astype(np.uint8))


def test_outlines_enclose_the_mask_holes_left_out():
    picture = Image.new("L", (80, 60))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((5, 5, 45, 50), fill=1)
    pen.ellipse((15, 15, 30, 30), fill=0)
    pen.rectangle((60, 20, 79, 59), fill=1)   # touches the border
    mask = np.asarray(picture).astype(bool)
    parts = polygons(mask)
    assert sorted(len(rings) for rings in parts) == [1, 2]

    def filled(rings: list) -> np.ndarray:
        return coco_mask.decode(coco_mask.frPyObjects(rings, 60, 80)).astype(bool).any(axis=2)

    drawn = np.zeros_like(mask)
    for outer, *holes in parts:
        drawn |= filled([outer]) & ~(filled(holes) if holes else np.zeros_like(mask))
    assert (drawn & mask).sum() / (drawn | mask).sum() > 0.97
    assert polygons(np.zeros((5, 5), dtype=bool)) == []


def test_a_sheet_has_every_panel_and_its_text():
    panels = [Image.new("RGB", (50, 20), "red"), Image.new("L", (9, 9), 255)]
    drawn = np.asarray(sheet([(panels, "one\nline two"), (panels, "two"), (panels, "three")], panel_px=32))
    assert (drawn == (255, 0, 0)).all(axis=2).sum() == 3 * 32 * 32 and drawn.shape[1] == 2 * (2 * (32 + 8) + 8)
    assert (drawn < 100).all(axis=2).any()   # text


def test_headings_name_the_panels_of_each_column_above_the_first_row():
    rows = [([Image.new("RGB", (9, 9), "red")] * 2, "one")] * 2
    plain, headed = (np.asarray(sheet(rows, panel_px=64, headings=headings)) for headings in ((), ("a", "b")))
    added = len(headed) - len(plain)
    assert added > 0 and (headed[added + 8:] == plain[8:]).all()
    dark = (headed[:added + 8] < 100).all(axis=2).any(axis=0)
    assert [bool(dark[start:start + 64].any()) for start in (8, 80, 160, 232)] == [True] * 4


@pytest.mark.parametrize("kind", [RuntimeError, NotImplementedError, AttributeError, MemoryError, struct.error])
def test_whatever_a_decoder_raises_is_a_users_error_for_that_picture(tmp_path, monkeypatch, kind):
    """AVIF's raises RuntimeError, DDS's NotImplementedError, SPIDER's AttributeError for damaged files."""
    Image.fromarray(COLOURS).save(tmp_path / "a.png")

    def load(image: Image.Image) -> None:
        raise kind("damaged")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(UserError, match=r"a\.png cannot be read as an image"):
        read_picture(tmp_path / "a.png")


def test_a_format_without_users_is_refused_by_what_is_read(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "a.dds")
    with pytest.raises(UserError, match=r"a\.dds cannot be read as an image: it is none of JPEG, PNG, TIFF"):
        read_picture(tmp_path / "a.dds")
