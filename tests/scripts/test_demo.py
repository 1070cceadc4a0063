"""demo_inference.py and the contact sheet, with an untrained network."""
import json
import resource
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
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
    return sorted(path.name for path in (tmp_path / "out").glob("*"))


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


@pytest.mark.parametrize("made_before", [True, False])
def test_nothing_is_left_where_every_image_is_refused(checkpoint, tmp_path, monkeypatch, capsys, made_before):
    (tmp_path / "a.png").write_text("no picture")
    if made_before:
        (tmp_path / "out").mkdir()
    with pytest.raises(SystemExit):
        run(demo_inference, monkeypatch, "--resume", checkpoint, "--image", tmp_path / "a.png", "--sentence", "a ship",
            "--out", tmp_path / "out", "--json")
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "out").exists() == made_before and not list(tmp_path.glob("out/*"))


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


@pytest.fixture
def scene(tmp_path) -> Path:
    """A scene of four bands of 16 bits, 150 × 210 px of 2 m in UTM zone 31, nodata in its left 20 columns."""
    rasterio = pytest.importorskip("rasterio")
    values = np.random.RandomState(0).randint(1, 4000, (4, 150, 210)).astype(np.uint16)
    values[:, :, :20] = 0
    with rasterio.open(tmp_path / "map.tif", "w", driver="GTiff", width=210, height=150, count=4, dtype="uint16",
                       nodata=0, crs="EPSG:32631", transform=rasterio.Affine(2, 0, 500000, 0, -2, 5400000)) as written:
        written.write(values)
    return tmp_path / "map.tif"


def test_a_scene_gives_layers_on_its_grid_and_vectors(checkpoint, scene, tmp_path, monkeypatch, capsys):
    pyogrio, rasterio = pytest.importorskip("pyogrio"), pytest.importorskip("rasterio")
    run(demo_inference, monkeypatch, "--resume", checkpoint, "--image", scene, "--sentence", "ship", "a vehicle",
        "--tile", 64, "--overlap", 0.5, "--bands", 4, 3, 2, "--stretch", 1, 99, "--threshold", 0.48, "--out",
        tmp_path / "out", "--save_probabilities", "--gpkg", "--geojson", tmp_path / "objects.geojson", "--json")
    assert shown(tmp_path) == sorted(["map-objects.gpkg", "predictions.json", *(
        f"map-{name}-{kind}" for name in ("ship", "a-vehicle") for kind in ("mask.tif", "overlay.png",
                                                                           "probability.tif"))])
    assert f"objects -> {tmp_path / 'objects.geojson'}" in capsys.readouterr().out
    entries = json.loads((tmp_path / "out/predictions.json").read_text())
    pixels = {}
    for entry in entries:
        with rasterio.open(entry["mask"]) as mask, rasterio.open(entry["probability"]) as probability, \
                rasterio.open(scene) as grid:
            assert (mask.crs, mask.transform, mask.shape) == (grid.crs, grid.transform, grid.shape)
            inside, likely = mask.read(1), probability.read(1)
        assert set(np.unique(inside)) == {0, 255} and not inside[:, :20].any() and not likely[:, :20].any()
        assert np.array_equal(coco_mask.decode(entry["segmentation"]) > 0, inside > 0)
        assert ((likely > 0.48) == (inside > 0)).mean() > 0.99   # float16
        pixels[entry["sentence"]] = (inside > 0).sum()
        assert Image.open(entry["overlay"]).size == (210, 150)
    meta, _, _, fields = pyogrio.raw.read(tmp_path / "out/map-objects.gpkg")
    table = dict(zip(meta["fields"], fields, strict=True))
    assert meta["crs"] == "EPSG:32631"
    assert {sentence: table["pixels"][table["sentence"] == sentence].sum() for sentence in pixels} == pixels
    with open(tmp_path / "objects.geojson") as file:
        assert len(json.load(file)["features"]) == len(table["pixels"])


def test_a_picture_without_a_georeference_has_vectors_in_pixels(checkpoint, tmp_path, monkeypatch, capsys):
    pyogrio = pytest.importorskip("pyogrio")
    Image.fromarray(np.random.RandomState(0).randint(0, 255, (90, 70, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    flags = ["--resume", checkpoint, "--image", tmp_path / "a.png", "--sentence", "ship", "--threshold", 0.45, "--out",
             tmp_path / "out"]
    run(demo_inference, monkeypatch, *flags, "--gpkg", "--min_area", 5, "--save_probabilities")
    mask = np.asarray(Image.open(tmp_path / "out/a-ship-mask.png")) > 0
    assert shown(tmp_path) == ["a-objects.gpkg", "a-ship-mask.png", "a-ship-overlay.png", "a-ship-probability.png"]
    meta, _, _, fields = pyogrio.raw.read(tmp_path / "out/a-objects.gpkg")
    table = dict(zip(meta["fields"], fields, strict=True))
    assert meta["crs"] is None and 5 <= table["pixels"].min() <= table["pixels"].sum() <= mask.sum()
    assert table["max_x"].max() <= 70 and table["max_y"].max() <= 90 and "area_m2" not in table
    with pytest.raises(SystemExit) as stop:
        run(demo_inference, monkeypatch, *flags, "--geojson")
    assert stop.value.code == 2 and "give --gpkg" in capsys.readouterr().err


def test_pairs_are_segmented_in_batches_and_bad_lines_named(checkpoint, scene, tmp_path, monkeypatch, capsys):
    for name in ("a", "b"):
        Image.fromarray(np.random.RandomState(ord(name)).randint(0, 255, (90, 70, 3), dtype=np.uint8)).save(
            tmp_path / f"{name}.png")
    (tmp_path / "pairs.csv").write_text("image,sentence\na.png,a ship\nb.png,a ship\na.png,ship, left\n"
                                        "map.tif,a ship\nnone.png,x\na.png,the vehicle\n")
    with pytest.raises(SystemExit) as stop:
        run(demo_inference, monkeypatch, "--resume", checkpoint, "--pairs", tmp_path / "pairs.csv", "--out",
            tmp_path / "out")
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and "(3 of 4 images were done)" in said
    assert "pairs.csv:4: the line has 3 fields" in said
    assert "pairs.csv:6: " in said and "none.png cannot be read" in said
    entries = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [(Path(entry["image"]).name, entry["sentence"]) for entry in entries] == [
        ("a.png", "a ship"), ("a.png", "the vehicle"), ("b.png", "a ship"), ("map.tif", "a ship")]
    run(demo_inference, monkeypatch, "--resume", checkpoint, "--image", tmp_path / "a.png", "--sentence", "the vehicle",
        "--out", tmp_path / "alone", "--json")
    alone, = json.loads((tmp_path / "alone/predictions.json").read_text())
    assert alone["segmentation"] == entries[1]["segmentation"]


def test_a_full_disk_leaves_nothing_of_a_scene(checkpoint, scene, tmp_path, monkeypatch, capsys):
    """The limit of a file's size stands in for the disk's."""
    (tmp_path / "out").mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, before[1]))
    try:
        with pytest.raises(SystemExit) as stop:
            run(demo_inference, monkeypatch, "--resume", checkpoint, "--image", scene, "--sentence", "ship", "--out",
                tmp_path / "out", "--tile", 64, "--save_probabilities")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "cannot be written" in said and said.count("\n") == 1 and not shown(tmp_path)


def test_a_scene_that_ends_early_leaves_nothing(checkpoint, scene, tmp_path, monkeypatch, capsys):
    scene.write_bytes(scene.read_bytes()[:-60_000])
    with pytest.raises(SystemExit) as stop:
        run(demo_inference, monkeypatch, "--resume", checkpoint, "--image", scene, "--sentence", "ship", "--out",
            tmp_path / "out", "--tile", 64)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "map.tif cannot be read" in said and said.count("\n") == 1 and not shown(tmp_path)


@pytest.mark.parametrize(("flags", "message"), [
    (["--image", "text.png"], "text.png cannot be read"),
    (["--image", "none.png"], "none.png cannot be read"),
    (["--image", "empty"], "--image empty: no file in this folder"),
    (["--image", "a.png", "--out", "text.png"], "--out text.png cannot be written"),
    (["--image", "a.png", "--overlap", "0.95"], "0.95 is more than 0.9"),
    (["--image", "a.png", "--sentence", "ship \udc80"], "is not valid Unicode"),
    (["--image", "x" * 300], "cannot be read"),
    (["--image", "a.png", "--threshold", "2"], "2 is not between 0 and 1"),
    (["--image", "a.png", "--resume", ""], "--resume FILE is needed"),
    (["--image", "a.png", "--bands", "0", "1", "2"], "0 is not a whole number of at least 1"),
    (["--image", "a.png", "--bands", "1", "2"], "--bands takes one or three numbers, not 2"),
    (["--image", "a.png", "--bands", "1", "2", "4"], "a.png has 3 bands, and no band 4"),
    (["--image", "a.png", "--stretch", "98", "2"], "--stretch takes a low and a high percentile, not 98 and 2"),
    (["--image", "a.png", "--stretch", "0", "101"], "101 is not between 0 and 100"),
    (["--image", "a.png", "a2.png", "--gpkg", "x.gpkg"], "--gpkg x.gpkg would hold the objects of 2 images"),
    (["--image", "a.png", "--pairs", "p.csv"], "leave --image and --sentence out"),
    ([], "give --image FILE and --sentence TEXT, or --pairs FILE")])
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
