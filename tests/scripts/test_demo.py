"""demo_inference.py and the contact sheet, with an untrained network."""
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from pycocotools import mask as coco_mask

import demo_inference
from bert import load_tokenizer
from lib.checkpoint import describe_model, save_checkpoint
from lib.imagery.vectors import polygons
from lib.predictor import ReadingWarning
from lib.segmentation import ModelConfig
from tools import contact_sheet


@pytest.fixture
def checkpoint(nano, toy, tmp_path):
    network = nano("rmsin")
    config = ModelConfig("rmsin", "nano", 4, 64, (1, 1, 1, 1), 0.0, network.text_encoder.config.to_diff_dict())
    save_checkpoint(tmp_path / "c.pth", {"model": network.state_dict(),
                                         **describe_model(config, load_tokenizer(str(toy / "bert")))})
    return tmp_path / "c.pth"


def run(module, monkeypatch, *arguments) -> None:
    monkeypatch.setattr("sys.argv", [module.__name__, *map(str, arguments)])
    module.main()


def shown(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "out").iterdir())


def test_every_image_and_sentence_gets_a_mask_and_an_overlay_of_the_images_size(checkpoint, tmp_path, monkeypatch):
    pixels = np.random.RandomState(0).randint(0, 255, (90, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "colour.png")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "gray.jpg")
    run(demo_inference, monkeypatch, "--resume", checkpoint, "--image", tmp_path / "colour.png", tmp_path / "gray.jpg",
        "--sentence", "The ship on the left", "a red vehicle", "--out", tmp_path / "out")
    assert shown(tmp_path) == sorted(f"{image}-{sentence}-{kind}.png" for image in ("colour", "gray")
                                     for sentence in ("the-ship-on-the-left", "a-red-vehicle")
                                     for kind in ("mask", "overlay"))
    mask = Image.open(tmp_path / "out/colour-a-red-vehicle-mask.png")
    assert mask.size == (70, 90) and set(np.unique(mask)) <= {0, 255}
    drawn = np.asarray(Image.open(tmp_path / "out/colour-a-red-vehicle-overlay.png"))
    outside = np.asarray(mask) == 0
    assert np.array_equal(drawn[outside], pixels[outside])


def test_words_that_the_network_does_not_get_are_named_once(checkpoint, tmp_path, monkeypatch, capsys, recwarn):
    for name in ("a", "b"):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{name}.png")
    run(demo_inference, monkeypatch, "--resume", checkpoint, "--image", tmp_path / "a.png", tmp_path / "b.png",
        "--sentence", "The ship on the left", "a house near the garage on the lower left", "--out", tmp_path / "out")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WARNING")]
    assert said == [
        "WARNING: 'a house near the garage on the lower left': the vocabulary of 97 tokens lacks 'house' (read as "
        "h ##o ##u ##s ##e), 'near' (read as n ##e ##a ##r), 'garage' (read as g ##a ##r ##a ##g ##e)",
        "WARNING: 'a house near the garage on the lower left': the last 2 words were not read: 'lower left' (a "
        "sentence has at most 20 tokens)"]
    assert not [warning for warning in recwarn if issubclass(warning.category, ReadingWarning)]


def test_the_json_says_what_the_mask_is(checkpoint, tmp_path, monkeypatch):
    pixels = np.random.RandomState(0).randint(0, 255, (90, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    run(demo_inference, monkeypatch, "--resume", checkpoint, "--image", tmp_path / "a.png", "--sentence", "a ship",
        "--threshold", 0.45, "--json", "--out", tmp_path / "out")
    entry, = json.loads((tmp_path / "out/predictions.json").read_text())
    mask = np.asarray(Image.open(entry["mask"])) > 0
    assert (entry["image"], entry["sentence"], entry["size"]) == (str(tmp_path / "a.png"), "a ship", [90, 70])
    assert np.array_equal(coco_mask.decode(entry["segmentation"]), mask)
    rows, columns = np.nonzero(mask)
    assert mask.any() and entry["area"] == mask.sum() and 0.45 < entry["mean_probability"] < 1
    assert entry["box"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    assert entry["polygons"] == polygons(mask)


def test_names_never_collide(checkpoint, tmp_path, monkeypatch):
    for name in ("a.png", "a.bmp"):
        Image.new("RGB", (40, 40)).save(tmp_path / name)
    run(demo_inference, monkeypatch, "--resume", checkpoint, "--image", tmp_path / "a.png", tmp_path / "a.bmp",
        "--sentence", "a ship", "A ship!", "???", "das Schiff, größer", "--out", tmp_path / "out")
    assert len(shown(tmp_path)) == 2 * 2 * 4 and "a-das-schiff-größer-mask.png" in shown(tmp_path)


def test_long_names_are_cut_to_what_a_file_system_takes(checkpoint, tmp_path, monkeypatch):
    Image.new("RGB", (40, 40)).save(tmp_path / f"{'ü' * 120}.png")
    run(demo_inference, monkeypatch, "--resume", checkpoint, "--image", tmp_path / f"{'ü' * 120}.png",
        "--sentence", "größer " * 40, "\x1b]0;owned\x07 ../../ship", "--out", tmp_path / "out")
    assert len(shown(tmp_path)) == 4 and max(len(name.encode()) for name in shown(tmp_path)) < 255


def test_a_folder_stands_for_its_images_and_a_bad_one_stops_no_other(checkpoint, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("b.png", "a.jpg"):
        Image.new("RGB", (40, 40)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / "aa.png").write_text("broken")
    with pytest.raises(SystemExit) as stop:
        run(demo_inference, monkeypatch, "--resume", checkpoint, "--image", folder, "--sentence", "ship",
            "--out", tmp_path / "out", "--json", tmp_path / "j.json")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert "aa.png cannot be read" in error and "(2 of 3 images were done)" in error and "notes" not in error
    assert [Path(entry["image"]).name for entry in json.loads((tmp_path / "j.json").read_text())] == ["a.jpg", "b.png"]


def test_a_large_scene_goes_in_tiles_and_keeps_its_place_on_the_ground(checkpoint, tmp_path, monkeypatch):
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    directory.tagtype[33550], directory[33550] = 12, (0.5, 0.5, 0.0)
    Image.fromarray(np.random.RandomState(0).randint(0, 255, (150, 210, 3), dtype=np.uint8)).save(
        tmp_path / "map.tif", tiffinfo=directory)
    run(demo_inference, monkeypatch, "--resume", checkpoint, "--image", tmp_path / "map.tif", "--sentence", "ship",
        "--tile", 64, "--overlap", 0.5, "--out", tmp_path / "out")
    assert shown(tmp_path) == ["map-ship-mask.tif", "map-ship-overlay.png"]
    with Image.open(tmp_path / "out/map-ship-mask.tif") as mask:
        assert mask.size == (210, 150) and mask.tag_v2[33550] == (0.5, 0.5, 0.0)


@pytest.mark.parametrize(("flags", "message"), [
    (["--image", "text.png"], "text.png cannot be read"),
    (["--image", "none.png"], "none.png cannot be read"),
    (["--image", "empty"], "--image empty: no file in this folder"),
    (["--image", "a.png", "--out", "text.png"], "--out text.png cannot be written"),
    (["--image", "a.png", "--overlap", "0.95"], "0.95 is more than 0.9"),
    (["--image", "a.png", "--sentence", "ship \udc80"], "is not valid Unicode"),
    (["--image", "x" * 300], "cannot be read"),
    (["--image", "a.png", "--threshold", "2"], "2 is not between 0 and 1"),
    (["--image", "a.png", "--resume", ""], "--resume FILE is needed")])
def test_a_mistake_is_one_line_and_status_2(checkpoint, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    Path("text.png").write_text("hello")
    Path("empty").mkdir()
    Image.new("RGB", (40, 40)).save("a.png")
    with pytest.raises(SystemExit) as stop:
        run(demo_inference, monkeypatch, "--resume", checkpoint, "--sentence", "ship", *flags)
    printed = capsys.readouterr().err
    assert stop.value.code == 2 and message in printed and printed.count("\n") == 1


def test_a_contact_sheet(checkpoint, toy, tmp_path, monkeypatch, capsys):
    run(contact_sheet, monkeypatch, "--resume", checkpoint, "--refer_data_root", toy, "--split", "val", "--samples", 3,
        "--out", tmp_path / "sheet.png")
    assert "3 samples of rrsisd val" in capsys.readouterr().out
    width, height = Image.open(tmp_path / "sheet.png").size
    assert width > 2 * 3 * 192 and height > 2 * 192   # two columns of three panels, two rows
