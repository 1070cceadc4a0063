"""Scenes: every layout gives the same pixels, windows the same as the whole, and bad files one line."""
import http.server
import threading

import numpy as np
import pytest
from PIL import Image

from lib.imagery import gdal, scenes, sources
from lib.imagery.layers import GeoLayer
from lib.imagery.scenes import Scene, open_scene
from lib.imagery.sources import Plain, in_one_piece, open_source
from tests.imagery.conftest import COLOURS
from utils import UserError

rasterio = pytest.importorskip("rasterio")
pytestmark = [pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
              pytest.mark.filterwarnings("ignore:Corrupt EXIF data")]

BANDS = COLOURS.transpose(2, 0, 1)
NIR = np.random.RandomState(1).randint(0, 256, (1, *COLOURS.shape[:2]), dtype=np.uint8)


def pixels(path, **options) -> np.ndarray:
    source = open_source(path, **options)
    assert isinstance(source, Scene)
    with source:
        return np.asarray(in_one_piece(source).picture)


@pytest.mark.parametrize(("name", "bands", "profile"), [
    ("a.tif", BANDS, {}),
    ("tiled.tif", BANDS, {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate"}),
    ("planar.tif", np.concatenate([BANDS, NIR]), {"interleave": "band"}),
    ("pixel.tif", np.concatenate([BANDS, NIR]), {"interleave": "pixel"}),
    ("unspecified.tif", np.concatenate([BANDS, NIR]), {"alpha": "unspecified"}),
    ("named.tif", np.concatenate([NIR, BANDS[::-1]]), {"colours": "undefined blue green red"}),
    ("cog.tif", BANDS, {"driver": "COG"}),
    ("a.jp2", BANDS, {"driver": "JP2OpenJPEG", "quality": "100", "reversible": "yes"}),
    ("a.img", BANDS, {"driver": "HFA"})])
def test_every_layout_of_the_same_colours_gives_the_same_pixels(make_scene, name, bands, profile):
    assert np.array_equal(pixels(make_scene(name, bands, **profile)), COLOURS)


@pytest.mark.parametrize("kind", ["uint16", "int16", "uint32", "float32"])
@pytest.mark.parametrize("extra", [0, 1])
def test_more_than_eight_bits_scaled_linearly_are_the_eight_bits(make_scene, kind, extra):
    bands = np.concatenate([BANDS, NIR])[:3 + extra].astype(kind) * 16 + 100
    assert np.array_equal(pixels(make_scene("a.tif", bands), stretch=(0, 100)), COLOURS)
    shown = pixels(make_scene("a.tif", bands)).astype(int)   # the 2nd and the 98th percentile
    assert [(shown == end).mean() for end in (0, 255)] == pytest.approx([0.02, 0.02], abs=0.01)


def test_bands_choose_the_colours(make_scene):
    path = make_scene("a.tif", np.concatenate([BANDS, NIR]))
    assert np.array_equal(pixels(path, bands=(4, 3, 2)), np.stack([NIR[0], BANDS[2], BANDS[1]], axis=-1))
    assert np.array_equal(pixels(path, bands=[2]), np.stack([BANDS[1]] * 3, axis=-1))
    assert np.array_equal(pixels(make_scene("gray.tif", BANDS[:1])), np.stack([BANDS[0]] * 3, axis=-1))


def test_a_palette_is_applied(make_scene, tmp_path):
    path = make_scene("a.tif", BANDS[:1] % 3, photometric="palette")
    with rasterio.open(path, "r+") as scene:
        scene.write_colormap(1, {0: (9, 8, 7, 255), 1: (250, 0, 0, 255), 2: (0, 0, 250, 255)})
    assert np.array_equal(pixels(path), np.uint8([[9, 8, 7], [250, 0, 0], [0, 0, 250]])[BANDS[0] % 3])


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
def test_windows_are_parts_of_the_whole(make_scene, kind):
    path = make_scene("a.tif", BANDS.astype(kind), tiled=True, blockxsize=16, blockysize=16)
    with open_scene(path) as scene:
        whole = np.asarray(scene.crop((0, 0, 120, 90))[0])
        for box in ((0, 0, 7, 9), (13, 5, 120, 90), (50, 80, 51, 90)):
            left, top, right, bottom = box
            assert np.array_equal(np.asarray(scene.crop(box)[0]), whole[top:bottom, left:right])


@pytest.mark.parametrize("how", ["nodata", "nan", "mask", "opacity"])
def test_pixels_without_a_value_are_black_invalid_and_not_in_the_percentiles(make_scene, how):
    outside = np.zeros(COLOURS.shape[:2], bool)
    outside[:, :40] = True
    bands = BANDS.astype(np.float32 if how == "nan" else np.uint16) * 16 + 1
    bands[:, outside] = np.nan if how == "nan" else 60000
    profile = {"nodata": 60000} if how == "nodata" else {}
    if how == "opacity":
        bands = np.concatenate([bands, np.where(outside, 0, 65535)[None].astype(np.uint16)])
        profile = {"alpha": "yes", "photometric": "rgb"}
    path = make_scene("a.tif", bands, **profile)
    if how == "mask":
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as scene:
            scene.write_mask(~outside)
    with open_scene(path, percentiles=(0, 100)) as scene:
        picture, valid = scene.crop((0, 0, 120, 90))
        assert np.array_equal(valid, ~outside) and not np.asarray(picture)[outside].any()
        expected = BANDS[:, ~outside].astype(float)
        expected = 255 * (expected - expected.min()) / (expected.max() - expected.min())
        assert np.abs(np.asarray(picture).transpose(2, 0, 1)[:, ~outside] - expected).max() <= 0.51
        assert scene.crop((40, 0, 120, 90))[1] is None and not scene.crop((0, 0, 30, 90))[1].any()


def test_eight_bit_opacity_hides_and_near_infrared_declared_as_opacity_does_not(make_scene, capsys):
    opacity = np.full_like(NIR, 255)
    opacity[:, :, :40] = 0
    with open_scene(make_scene("rgba.tif", np.concatenate([BANDS, opacity]), alpha="yes")) as scene:
        assert np.array_equal(scene.crop((0, 0, 120, 90))[1], opacity[0] > 0)
    assert capsys.readouterr().out == ""
    with open_scene(make_scene("rgbn.tif", np.concatenate([BANDS, NIR]), alpha="yes")) as scene:
        assert scene.crop((0, 0, 120, 90))[1] is None
    assert "band 4 is declared as opacity, but its values are not" in capsys.readouterr().out


def test_values_in_a_corner_that_the_sample_misses_are_found(make_scene, monkeypatch):
    monkeypatch.setattr(scenes, "SAMPLE_PX", 4)
    bands = np.zeros((3, 90, 120), np.uint16)
    bands[:, 1, 1:4] = (10, 20, 30)
    with open_scene(make_scene("a.tif", bands, nodata=0), percentiles=(0, 100)) as scene:
        assert scene.limits == (10, 30)


@pytest.mark.parametrize("how", ["crs", "transform", "world file", "nothing"])
def test_a_file_with_a_georeference_is_a_scene_and_any_other_a_picture(tmp_path, make_scene, how):
    path = tmp_path / "a.png"
    Image.fromarray(COLOURS).save(path)
    if how == "crs":
        path = make_scene("a.tif", BANDS, transform=None)
    elif how == "transform":
        path = make_scene("a.tif", BANDS, crs=None)
    elif how == "world file":
        (tmp_path / "a.pgw").write_text("2\n0\n0\n-2\n500000\n5400000\n")
    source = open_source(path)
    assert isinstance(source, Plain if how == "nothing" else Scene)
    assert np.array_equal(np.asarray(in_one_piece(source).picture), COLOURS)
    assert isinstance(source, Plain) or source.close() is None


@pytest.mark.parametrize("name", ["a.tif", "a.jp2", "a.png"])
def test_a_file_without_a_georeference_gives_what_pillow_gives(tmp_path, name):
    opacity = Image.fromarray(np.uint8(np.arange(120) * 2)[None].repeat(90, 0))
    image = Image.fromarray(COLOURS).convert("RGBA")
    image.putalpha(opacity)
    image.save(tmp_path / name, **({"irreversible": False} if name == "a.jp2" else {}))
    shown = Image.new("RGB", image.size)
    shown.paste(image, mask=opacity)
    source = open_source(tmp_path / name)
    assert isinstance(source, Plain) and np.array_equal(np.asarray(source.picture), np.asarray(shown))


def test_what_pillow_does_not_know_is_read_without_a_georeference_too(make_scene):
    path = make_scene("a.tif", BANDS.astype(np.uint16), crs=None, transform=None)
    assert np.array_equal(pixels(path, stretch=(0, 100)), COLOURS) and pixels(path).shape == COLOURS.shape


VRT = """<VRTDataset rasterXSize="120" rasterYSize="90"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>
<SourceFilename relativeToVRT="{here}">{source}</SourceFilename><SourceBand>1</SourceBand>
</SimpleSource></VRTRasterBand></VRTDataset>"""


def test_a_vrt_of_its_own_folder_is_read(make_scene, tmp_path):
    make_scene("a.tif", BANDS)
    (tmp_path / "a.vrt").write_text(VRT.format(here=1, source="a.tif"))
    assert np.array_equal(pixels(tmp_path / "a.vrt")[..., 0], BANDS[0])
    (tmp_path / "b.vrt").write_text(VRT.format(here=0, source=tmp_path / "a.vrt"))
    assert np.array_equal(pixels(tmp_path / "b.vrt")[..., 0], BANDS[0])


@pytest.fixture
def visited():
    """A server on this machine, (port, paths that were asked for)."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *said):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server.server_port, asked
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("source", ["missing.tif", "/vsicurl/http://127.0.0.1:{port}/a.tif", "http://127.0.0.1:{port}/a",
                                    "../outside.tif", "/etc/passwd", "&lt;VRTDataset/&gt;", "", "link.tif",
                                    "WMS:http://127.0.0.1:{port}/"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_vrt_that_points_elsewhere_is_refused_and_nothing_is_fetched(make_scene, tmp_path, visited, source, nested):
    inside = tmp_path / "inside"
    inside.mkdir()
    make_scene("outside.tif", BANDS)
    (inside / "link.tif").symlink_to(tmp_path / "outside.tif")
    (inside / "b.vrt").write_text(VRT.format(here=int("://" not in source), source=source.format(port=visited[0])))
    (inside / "a.vrt").write_text(VRT.format(here=1, source="b.vrt"))
    with pytest.raises(UserError, match=r"cannot be read: its source '.*' (is no file|lies outside)") as refused:
        open_source(inside / ("a.vrt" if nested else "b.vrt"))
    assert "\n" not in str(refused.value) and not visited[1]


def test_gdal_itself_has_no_network(visited):
    """Should a format name a URL in a way that is not looked for, GDAL does not go there."""
    with gdal.gdal("x") as module:
        for name in (f"/vsicurl/http://127.0.0.1:{visited[0]}/a.tif", f"/vsicurl_streaming/http://127.0.0.1:{visited[0]}/a"):
            with pytest.raises(module.errors.RasterioIOError):
                module.open(name)
    assert not visited[1]


@pytest.mark.parametrize(("name", "content"), [
    ("a.vrt", b"<VRTDataset><"), ("b.vrt", b"<VRTDataset subClass='VRTPansharpenedDataset'/>"),
    ("c.xml", b"<GDAL_WMS><Service name='TMS'/></GDAL_WMS>"), ("d.tif", b"II*\0\x08\0\0\0"), ("e.xyz", b"no raster"),
    ("f.vrt", b'<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><VRTDataset>&c;</VRTDataset>')])
def test_damaged_and_foreign_files_are_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} cannot be read|{name} is of no format") as refused:
        open_source(tmp_path / name)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["a.tif", "a.jp2"])
def test_every_damaged_byte_gives_a_picture_or_one_line(make_scene, tmp_path, name):
    content = make_scene(name, BANDS, **({"driver": "JP2OpenJPEG"} if name == "a.jp2" else {})).read_bytes()
    draw = np.random.RandomState(0)
    ends = set()
    for _ in range(40):
        damaged = bytearray(content)
        for place in draw.randint(0, min(len(content), 600), 6):
            damaged[place] = draw.randint(256)
        (tmp_path / name).write_bytes(damaged)
        try:
            source = open_source(tmp_path / name)
            if isinstance(source, Scene):
                with source:
                    source.crop((0, 0, 4, 4))
            ends.add("read")
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 600
            ends.add("refused")
    assert ends == {"read", "refused"}


def test_a_scene_that_cannot_be_used_is_one_line(make_scene, tmp_path, monkeypatch):
    rgb = make_scene("rgb.tif", BANDS)
    for bands, said in (((4, 3, 2), "has 3 bands, and no band 4"), ((0,), "no band 0")):
        with pytest.raises(UserError, match=said):
            open_source(rgb, bands=bands)
    for name, bands, profile, said in (
            ("c.tif", BANDS.astype(np.complex64), {}, "complex numbers"),
            ("n.tif", np.zeros_like(BANDS), {"nodata": 0}, "no pixel with a value")):
        with pytest.raises(UserError, match=said):
            open_source(make_scene(name, bands, **profile))
    cut = tmp_path / "cut.tif"
    cut.write_bytes(rgb.read_bytes()[:15000])
    with pytest.raises(UserError, match=r"cut\.tif cannot be read: ") as refused, open_source(cut) as scene:
        in_one_piece(scene)
    assert "\n" not in str(refused.value)
    monkeypatch.setattr(scenes, "MOST_BLOCK_BYTES", 100)
    with pytest.raises(UserError, match="stored in blocks of 120 × "):
        open_source(rgb)


def test_a_scene_too_large_to_hold_needs_tiles_and_costs_nothing_to_open(tmp_path, make_scene):
    path = make_scene("a.tif", np.zeros((1, 1, 1), np.uint8))
    with rasterio.open(path, "w", driver="GTiff", width=200_000, height=200_000, count=3, dtype="uint8", tiled=True,
                       blockxsize=4096, blockysize=4096, crs="EPSG:32631", sparse_ok=True, bigtiff="yes"):
        pass   # it claims 112 GiB
    with open_source(path) as scene:
        assert scene.size == (200_000, 200_000) and scene.crop((0, 0, 8, 8))[0].size == (8, 8)
        with pytest.raises(UserError, match=r"more pixels than is safe.*--tile"):
            in_one_piece(scene)


def test_without_rasterio_a_scene_names_the_file_to_install_and_pictures_go_on(make_scene, tmp_path, monkeypatch):
    scene, other = make_scene("a.tif", BANDS), make_scene("b.tif", BANDS.astype(np.uint16), crs=None, transform=None)
    Image.fromarray(COLOURS).save(tmp_path / "plain.tif")
    monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    for path in (scene, other):
        with pytest.raises(UserError, match=r"pip install -r requirements-geo\.txt"):
            open_source(path)
    assert isinstance(open_source(tmp_path / "plain.tif"), sources.Plain)


# What is written


def test_a_layer_lies_on_the_scenes_grid_in_compressed_tiles_and_appears_whole(make_scene, tmp_path):
    mask = np.random.RandomState(2).rand(90, 120) > 0.5
    probability = np.random.RandomState(3).rand(90, 120).astype(np.float32)
    turned = rasterio.Affine(2, 0, 5e5, 0, -2, 5e6) @ rasterio.Affine.rotation(30)
    with open_scene(make_scene("a.tif", BANDS, transform=turned)) as scene:
        with GeoLayer(tmp_path / "m.tif", scene) as first, GeoLayer(tmp_path / "p.tif", scene, "float16") as second:
            for top in range(0, 90, 7):
                first.write(mask[top:top + 7].astype(np.uint8) * 255)
                second.write(probability[top:top + 7])
            assert not (tmp_path / "m.tif").exists()
        with rasterio.open(tmp_path / "m.tif") as written:
            assert np.array_equal(written.read(1), mask * 255) and written.nodata is None
            assert (written.crs, written.transform) == (scene.crs, turned)
            assert written.profile["tiled"] and written.compression.name == "deflate"
        with rasterio.open(tmp_path / "p.tif") as written:
            assert np.abs(written.read(1) - probability).max() < 5e-4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "m.tif", "p.tif"]


def test_a_layer_that_fails_leaves_nothing(make_scene, tmp_path):
    with open_scene(make_scene("a.tif", BANDS)) as scene:
        with pytest.raises(KeyError), GeoLayer(tmp_path / "m.tif", scene) as layer:
            layer.write(np.zeros((50, 120), np.uint8))
            raise KeyError
        with pytest.raises(UserError, match="cannot be written"), GeoLayer(tmp_path / "none/m.tif", scene):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]
