"""Connected objects and their outlines: rasterised again, they are the mask, in every coordinate system."""
import json
import struct

import numpy as np
import pytest
from scipy import ndimage

from lib.imagery.layers import GeoLayer
from lib.imagery.objects import Objects
from lib.imagery.scenes import open_scene
from lib.imagery.vectors import FORMATS, area_of, denser, edges_cross, features, simplified, write_features
from utils import UserError

rasterio = pytest.importorskip("rasterio")
pyogrio = pytest.importorskip("pyogrio")
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

A = rasterio.Affine
PLACES = {"UTM 31": ("EPSG:32631", A(0.5, 0, 399000, 0, -0.5, 5399000)),
          "UTM 32": ("EPSG:32632", A(10, 0, 300000, 0, -10, 5400000)),
          "rotated": ("EPSG:32631", A(0.5, 0, 399000, 0, -0.5, 5399000) @ A.rotation(30)),
          "south up": ("EPSG:32631", A(2, 0, 399000, 0, 2, 5399000)),
          "degrees": ("EPSG:4326", A(1e-4, 0, 3, 0, -1e-4, 48)),
          "Web Mercator": ("EPSG:3857", A(1, 0, 3e5, 0, -1, 6e6)),
          "no CRS": (None, A(2, 0, 100, 0, -2, 200))}


def blobs(height: int = 200, width: int = 260) -> np.ndarray:
    """Blobs, an object with a hole in which another object lies, and two objects that touch at a corner only."""
    mask = ndimage.gaussian_filter(np.random.RandomState(0).rand(height, width), 3) > 0.515
    mask[20:150, 30:200] = True
    mask[40:120, 50:180] = False
    mask[60:100, 80:140] = True
    mask[160:200] = False
    mask[170:175, 10:15] = mask[175:180, 15:20] = True
    mask[0] = mask[:, -1] = True
    return mask


MASK = blobs()
PROBABILITY = np.random.RandomState(1).rand(*MASK.shape).astype(np.float32)


def collect(mask: np.ndarray, probability: np.ndarray, rows: int) -> Objects:
    objects = Objects()
    for top in range(0, len(mask), rows):
        objects.add(mask[top:top + rows], probability[top:top + rows])
    return objects


@pytest.fixture
def find(make_scene, tmp_path):
    """Finds the objects of MASK in a scene at a place: find(place, **options of features) -> (features, scene)."""
    def made(place: str, **options):
        crs, transform = PLACES[place]
        path = make_scene("s.tif", np.zeros((3, *MASK.shape), np.uint8), crs=crs, transform=transform)
        with open_scene(path) as scene, GeoLayer(tmp_path / "m.tif", scene) as layer:
            layer.write(MASK.astype(np.uint8) * 255)
            found = collect(MASK, PROBABILITY, 33).found()
            return features(layer.finish(), found, "the ship", scene.transform, scene.crs, **options), scene
    return made


def polygons_in(path) -> list[dict]:
    """The polygons of a vector file, read from their well-known binary."""
    shapes = []
    for content in pyogrio.raw.read(path)[2]:
        kind, count = struct.unpack_from("<II", content, 1)
        assert kind == 3
        rings, place = [], 9
        for _ in range(count):
            length, = struct.unpack_from("<I", content, place)
            rings.append(np.frombuffer(content, "<f8", 2 * length, place + 4).reshape(-1, 2).tolist())
            place += 4 + 16 * length
        shapes.append({"type": "Polygon", "coordinates": rings})
    return shapes


@pytest.mark.parametrize("rows", [1, 7, 200])
def test_objects_of_bands_are_those_of_the_whole(rows):
    labels, count = ndimage.label(MASK)
    found = collect(MASK, PROBABILITY, rows).found()
    assert len(found) == count
    for first, one in found.items():
        inside = labels == labels.ravel()[first]
        assert labels.ravel()[first] and np.flatnonzero(inside)[0] == first
        assert one.pixels == inside.sum()
        assert one.mean_probability == pytest.approx(PROBABILITY[inside].mean(), abs=1e-6)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("simplify_px", [0, 0.75])
def test_outlines_rasterised_again_are_the_mask(find, tmp_path, place, suffix, simplify_px):
    made, scene = find(place, simplify_px=simplify_px)
    crs, transform = PLACES[place]
    path = tmp_path / f"o{suffix}"
    if suffix == ".geojson" and crs is None:
        with pytest.raises(UserError, match=r"no coordinate reference system; give --gpkg"):
            write_features(path, FORMATS[suffix], made, transform, scene.crs)
        return
    write_features(path, FORMATS[suffix], made, transform, scene.crs)
    shapes, written = polygons_in(path), pyogrio.read_info(path)
    assert written["crs"] == ("EPSG:4326" if suffix == ".geojson" else crs)
    assert len(shapes) == ndimage.label(MASK)[1] and sum(len(shape["coordinates"]) > 1 for shape in shapes) == 1
    if suffix == ".geojson":
        shapes = [rasterio.warp.transform_geom("EPSG:4326", crs, shape) for shape in shapes]
    again = rasterio.features.rasterize(shapes, MASK.shape, transform=transform) > 0
    assert np.array_equal(again, MASK) if not simplify_px else (again & MASK).sum() / (again | MASK).sum() >= 0.98


def test_a_feature_says_what_the_object_is(find, tmp_path):
    made, scene = find("UTM 31")
    write_features(tmp_path / "o.gpkg", FORMATS[".gpkg"], made, scene.transform, scene.crs)
    write_features(tmp_path / "o.geojson", FORMATS[".geojson"], made, scene.transform, scene.crs)
    meta, _, _, fields = pyogrio.raw.read(tmp_path / "o.gpkg")
    table = dict(zip(meta["fields"], fields, strict=True))
    labels, count = ndimage.label(MASK)
    assert sorted(table["pixels"]) == sorted(np.bincount(labels.ravel())[1:]) and set(table["sentence"]) == {"the ship"}
    np.testing.assert_allclose(table["area_m2"], table["pixels"] * 0.25)
    rows, columns = np.nonzero(labels == labels[60, 80])
    place = list(table["pixels"]).index(len(rows))
    assert table["mean_probability"][place] == pytest.approx(PROBABILITY[labels == labels[60, 80]].mean(), abs=1e-4)
    assert [table[name][place] for name in ("min_x", "min_y", "max_x", "max_y")] == [
        399000 + 0.5 * columns.min(), 5399000 - 0.5 * (rows.max() + 1),
        399000 + 0.5 * (columns.max() + 1), 5399000 - 0.5 * rows.min()]
    collection = json.loads((tmp_path / "o.geojson").read_text())
    assert "crs" not in collection and len(collection["features"]) == count
    feature = collection["features"][place]
    assert feature["properties"] == {"sentence": "the ship", "pixels": len(rows), "area_m2": len(rows) * 0.25,
                                     "mean_probability": round(float(table["mean_probability"][place]), 4)}
    west, south, east, north = feature["bbox"]
    assert 1 < west < east < 2 and 48 < south < north < 49


def test_rings_of_geojson_turn_as_rfc_7946_says(find, tmp_path):
    made, scene = find("UTM 31")
    write_features(tmp_path / "o.geojson", FORMATS[".geojson"], made, scene.transform, scene.crs)
    for feature in json.loads((tmp_path / "o.geojson").read_text())["features"]:
        for place, ring in enumerate(feature["geometry"]["coordinates"]):
            x, y = (np.array(ring) - ring[0]).T   # less the first, for precision
            assert ((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() > 0) == (place == 0)


def test_specks_are_left_out(find):
    everything = find("UTM 31")[0]
    large = find("UTM 31", min_area=20)[0]
    assert 0 < len(large) < len(everything)
    assert {one.pixels for one in large} == {one.pixels for one in everything if one.pixels >= 80}
    assert {one.pixels for one in find("no CRS", min_area=80)[0]} == {one.pixels for one in large}


SQUARE = np.array([[0, 0], [100, 0], [100, 100], [0, 100], [0, 0]], float)
HOLE = np.array([[20, 20], [20, 60], [60, 60], [60, 20], [20, 20]], float)


@pytest.mark.parametrize(("latitude", "longitude"), [(0.0, 3.0), (48.0, 3.0), (-75.0, 179.995)])
def test_the_area_in_degrees_is_that_on_the_ellipsoid(latitude, longitude):
    """The area between parallels of the WGS 84 ellipsoid, by its closed form; also across 180°."""
    side = 1e-4
    transform = A(side, 0, longitude, 0, -side, latitude + 100 * side)

    def zone(degrees: float) -> float:
        """The area from the equator to a latitude, for one radian of longitude."""
        e = np.sqrt(1 - (6356752.314245179 / 6378137) ** 2)
        sine = np.sin(np.radians(degrees))
        return 6356752.314245179 ** 2 / 2 * (sine / (1 - (e * sine) ** 2) + np.arctanh(e * sine) / e)

    def cells(first: int, last: int) -> float:
        return np.radians((last - first) * side) * (zone(latitude + (100 - first) * side)
                                                    - zone(latitude + (100 - last) * side))

    crs = rasterio.CRS.from_epsg(4326)
    assert area_of([SQUARE], 10000, transform, crs) == pytest.approx(cells(0, 100), rel=1e-6)
    assert area_of([SQUARE, HOLE], 8400, transform, crs) == pytest.approx(cells(0, 100) - cells(20, 60), rel=1e-6)


def test_the_area_of_a_projected_scene_is_in_square_metres_of_the_ground():
    feet = rasterio.CRS.from_epsg(2263)   # US survey feet
    area = area_of([SQUARE], 10000, A(1, 0, 1e6, 0, -1, 2e5), feet)
    assert area == pytest.approx(10000 * 0.3048006096 ** 2, rel=1e-6)
    mercator = rasterio.CRS.from_epsg(3857)   # at 60° north, a metre of the map is half a metre
    assert area_of([SQUARE], 10000, A(1, 0, 0, 0, -1, 8399737.9), mercator) == pytest.approx(2500, rel=0.01)
    assert area_of([SQUARE], 10000, A.identity(), None) is None


def test_simplified_outlines_are_near_the_originals_and_do_not_cross(find):
    for one in find("UTM 31")[0]:
        rings = simplified(one.rings, 3.0)
        assert not edges_cross(rings) and len(rings[0]) <= len(one.rings[0])
        for ring in rings:
            assert np.array_equal(ring[0], ring[-1]) and len(ring) > 3
    stairs = np.array([[0, 0], *([x, y] for x in range(50) for y in (x, x + 1))], float)
    stairs = np.concatenate([stairs, [[49, 60], [0, 60], [0, 0]]])
    assert len(simplified([stairs], 1.0)[0]) == 5 and len(simplified([SQUARE], 5.0)[0]) == 5
    assert len(simplified([np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]], float)], 9.0)[0]) == 5   # none vanishes


def test_edges_cross_where_they_do():
    assert not edges_cross([SQUARE, HOLE])
    assert edges_cross([np.array([[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]], float)])
    assert edges_cross([SQUARE, np.add(HOLE, (50, 0))])


def test_denser_outlines_have_the_same_shape_and_short_edges():
    ring = denser(SQUARE)
    assert np.abs(np.diff(ring, axis=0)).max() <= 32 and all((ring == corner).all(1).any() for corner in SQUARE)
    assert ((ring[:, 0] % 100 == 0) | (ring[:, 1] % 100 == 0)).all() and np.array_equal(ring[0], ring[-1])


@pytest.mark.parametrize("suffix", FORMATS)
def test_no_object_is_an_empty_layer_and_an_old_file_is_replaced(make_scene, tmp_path, suffix):
    with open_scene(make_scene("s.tif", np.zeros((3, 9, 9), np.uint8))) as scene:
        path = tmp_path / f"o{suffix}"
        path.write_text("old")
        write_features(path, FORMATS[suffix], [], scene.transform, scene.crs)
        assert pyogrio.read_info(path, force_feature_count=True)["features"] == 0
        with pytest.raises(UserError, match="cannot be written"):
            write_features(tmp_path / f"s.tif/o{suffix}", FORMATS[suffix], [], scene.transform, scene.crs)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([path.name, "s.tif"])
