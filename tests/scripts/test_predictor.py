"""The predictor as a library: one image or many, of any kind and size, and scenes tile by tile."""
import io

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from args import get_parser
from lib.checkpoint import read_checkpoint
from lib.imagery.sources import Plain
from lib.predictor import Predictor, ReadingWarning, starts, tent
from lib.report.attention_maps import has_word_maps
from tests.conftest import save_nano_checkpoint
from utils import UserError


@pytest.fixture(scope="module")
def make_predictor(toy, tmp_path_factory):
    """Makes a predictor from the checkpoint of a nano network with random weights: make(model, **options)."""
    def make(kind="rmsin", **options) -> Predictor:
        path = save_nano_checkpoint(tmp_path_factory.mktemp("checkpoint") / "c.pth", toy, kind)
        return Predictor(path, device="cpu", **options)
    return make


class Brightness(torch.nn.Module):
    """Stands in for a network: the object is what is brighter than ImageNet's mean."""

    def forward(self, image, token_ids, token_mask):
        return torch.stack([torch.zeros_like(image[:, 0]), image.mean(1)], dim=1)


@pytest.fixture
def bright(make_predictor) -> Predictor:
    predictor = make_predictor("lavt")
    predictor.model = Brightness()
    return predictor


def scene(height: int, width: int) -> np.ndarray:
    """Black with a white rectangle and a white border on the right."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[height // 3:height // 2, width // 4:width // 2] = 255
    pixels[:, -width // 8:] = 255
    return pixels


@pytest.mark.parametrize("segment", [
    lambda predictor, image, sentence: predictor.segment(image, sentence),
    lambda predictor, image, sentence: predictor.segment_batch([image], [sentence]),
    lambda predictor, image, sentence: predictor.segment_scene(image, [sentence], tile_px=64)])
def test_a_sentence_that_is_not_read_as_it_was_written_warns(bright, segment):
    with pytest.warns(ReadingWarning, match="'the ship beside the tank': the vocabulary of 97 tokens lacks 'beside'"):
        segment(bright, scene(64, 64), "the ship beside the tank")
    with pytest.warns(ReadingWarning, match="the last 2 words were not read: 'lower left'"):
        segment(bright, scene(64, 64), "the " * 19 + "lower left")


@pytest.mark.filterwarnings("error::lib.predictor.ReadingWarning")
def test_a_sentence_of_known_words_does_not_warn(bright):
    bright.segment(scene(64, 64), "The ship on the left")


# The contract: what an image may be

PIXELS = np.random.RandomState(0).randint(0, 256, (50, 70, 3), dtype=np.uint8)
GRAY = PIXELS[..., 0]
FOUR = np.dstack([PIXELS, GRAY])


def png(pixels: np.ndarray, folder) -> str:
    Image.fromarray(pixels).save(folder / "a.png")
    return str(folder / "a.png")


@pytest.fixture(scope="module")
def predictor(make_predictor) -> Predictor:
    return make_predictor()


@pytest.fixture(scope="module")
def expected(predictor) -> np.ndarray:
    return predictor.probabilities(Image.fromarray(PIXELS), "the ship on the left")


ACCEPTED = {
    "path": lambda folder: png(PIXELS, folder),
    "Path": lambda folder: folder / png(PIXELS, folder),
    "Pillow image": lambda folder: Image.fromarray(PIXELS),
    "opaque Pillow image": lambda folder: Image.fromarray(PIXELS).convert("RGBA"),
    "uint8": lambda folder: PIXELS,
    "not contiguous": lambda folder: np.asfortranarray(PIXELS)[::-1][::-1],
    "read-only": lambda folder: np.frombuffer(PIXELS.tobytes(), np.uint8).reshape(PIXELS.shape),
    "float64": lambda folder: PIXELS / 255,
    "float32": lambda folder: PIXELS.astype(np.float32) / 255,
    "four channels, bands": lambda folder: (FOUR, {"bands": (1, 2, 3)}),
    "reordered, bands": lambda folder: (FOUR[..., ::-1], {"bands": (4, 3, 2)}),
    "opaque, alpha": lambda folder: (np.dstack([PIXELS, np.full_like(GRAY, 255)]), {"alpha": True}),
    "tensor of uint8": lambda folder: torch.from_numpy(PIXELS).permute(2, 0, 1),
    "tensor of floats": lambda folder: torch.from_numpy(PIXELS).permute(2, 0, 1) / 255,
    "tensor of float64 with a gradient": lambda folder: (torch.from_numpy(PIXELS).permute(2, 0, 1).double()
                                                         / 255).requires_grad_(),
    "tensor of four channels, bands": lambda folder: (torch.from_numpy(FOUR).permute(2, 0, 1), {"bands": (1, 2, 3)})}

REFUSED = {
    "None": (None, TypeError, "it is of type NoneType"),
    "bytes": (b"x" * 9999, TypeError, "of type bytes of length 9999"),
    "file": (io.BytesIO(b"x"), TypeError, "of type _io.BytesIO"),
    "number": (7, TypeError, "of type int"),
    "list": (PIXELS.tolist(), TypeError, "of type list of length 50"),
    "uint16": (PIXELS.astype(np.uint16) * 16, TypeError, r"an array \(50, 70, 3\) of uint16 from 0 to 4080"),
    "int64": (PIXELS.astype(np.int64), TypeError, "int64 from 0 to 255"),
    "bool": (PIXELS > 9, TypeError, r"\(50, 70, 3\) of bool"),
    "complex": (PIXELS * 1j, TypeError, "complex128"),
    "text": (np.full((4, 4), "a"), TypeError, r"an array \(4, 4\) of str"),
    "objects": (np.full((4, 4), None), TypeError, "object"),
    "floats to 255": (PIXELS.astype(float), ValueError, "float64 from 0 to 255: divide"),
    "negative floats": (PIXELS / 255 - 0.5, ValueError, "float64 from -0.5 to 0.5"),
    "NaN": (np.full((50, 70, 3), np.nan), ValueError, "float64 with NaN or infinite values"),
    "infinite": (np.full((5, 7), np.inf, np.float32), ValueError, "float32 with NaN"),
    "four channels": (FOUR, ValueError, r"needs bands=\(1, 2, 3\), if the fourth is near infrared, or alpha=True"),
    "two channels": (PIXELS[..., :2], ValueError, r"\(50, 70, 2\)"),
    "five channels": (np.zeros((4, 4, 5), np.uint8), ValueError, r"with bands=\(R, G, B\)"),
    "channels first": (PIXELS.transpose(2, 0, 1), ValueError, r"\(3, 50, 70\)"),
    "empty": (np.zeros((0, 4), np.uint8), ValueError, r"none of them 0; it is an array \(0, 4\)"),
    "one dimension": (np.zeros(5, np.uint8), ValueError, r"\(5,\)"),
    "tensor of channels last": (torch.from_numpy(PIXELS), ValueError, r"must be \(3, H, W\); it is \(50, 70, 3\)"),
    "batch of tensors": (torch.zeros(1, 3, 5, 7), ValueError, r"it is \(1, 3, 5, 7\)"),
    "flat tensor": (torch.zeros(5, 7), ValueError, r"it is \(5, 7\)"),
    "normalised tensor": (torch.full((3, 5, 7), -2.1), ValueError, r"from -2\.1 to -2\.1"),
    "tensor of int64": (torch.zeros(3, 5, 7, dtype=torch.int64), TypeError, "int64 from 0 to 0"),
    "band 0": ((FOUR, {"bands": (0, 1, 2)}), ValueError, r"numbers from 1 to 4, but are \(0, 1, 2\)"),
    "band 5": ((FOUR, {"bands": (5,)}), ValueError, "from 1 to 4"),
    "two bands": ((FOUR, {"bands": (1, 2)}), ValueError, "one or three"),
    "bands of Pillow": ((Image.fromarray(FOUR), {"bands": (1, 2, 3)}), ValueError, "mode RGBA"),
    "missing path": ("missing.png", UserError, "missing.png cannot be read as an image: No such file"),
    "long path": ("x" * 21413, UserError, "cannot be read as an image: File name too long")}


@pytest.mark.parametrize("form", [*ACCEPTED, *REFUSED])
def test_every_accepted_form_gives_the_same_mask_and_every_other_a_short_error(predictor, expected, tmp_path, form):
    image = ACCEPTED[form](tmp_path) if form in ACCEPTED else REFUSED[form][0]
    image, options = image if isinstance(image, tuple) else (image, {})
    if form in ACCEPTED:
        found = predictor.probabilities(image, "the ship on the left", **options)
        assert np.array_equal(found, expected)
        assert np.array_equal(predictor.segment(image, "the ship on the left", **options), expected > 0.5)
        batch = predictor.segment_batch([image], ["the ship on the left"], **options)
        assert np.array_equal(batch[0], expected > 0.5)
        return
    _, kind, said = REFUSED[form]
    for segment in (predictor.segment, predictor.probabilities,
                    lambda *args, **options: predictor.segment_batch([args[0]], [args[1]], **options),
                    lambda *args, **options: predictor.segment_scene(*args, tile_px=64, **options)):
        with pytest.raises(kind, match=said) as refused:
            segment(image, "the ship", **options)
        assert type(refused.value) is kind and len(str(refused.value)) < 450 and "\n" not in str(refused.value)


def test_one_channel_is_gray_and_declared_opacity_is_black_where_it_is_0(predictor, bright):
    gray = predictor.probabilities(np.dstack([GRAY] * 3), "a ship")
    for image in (GRAY, GRAY[..., None], GRAY / 255, torch.from_numpy(GRAY)[None]):
        assert np.array_equal(predictor.probabilities(image, "a ship"), gray)
    white = np.full((64, 64, 4), 255, np.uint8)
    white[:, :32, 3] = 0
    assert np.array_equal(bright.segment(white, "x", alpha=True), white[..., 3] > 0)
    assert bright.segment(white, "x", bands=(1, 2, 3)).all()


@pytest.mark.parametrize("sentence", [None, 7, b"the ship", ["a", None], {"a": 1}, np.array(["a"])])
def test_what_is_no_sentence_is_a_short_error(predictor, sentence):
    for segment in (predictor.segment, predictor.probabilities):
        with pytest.raises(TypeError, match="a sentence must be a str, and several a list of str"):
            segment(PIXELS, sentence)
    with pytest.raises(ValueError, match="no sentence was given"):
        predictor.segment(PIXELS, [])


@pytest.mark.parametrize("model", ["rmsin", "lavt"])
def test_a_list_of_sentences_is_each_of_them(make_predictor, model):
    predictor, sentences = make_predictor(model), ["a ship", "the large gray airplane on the left", "a vehicle"]
    alone = np.stack([predictor.probabilities(PIXELS, sentence) for sentence in sentences])
    together = predictor.probabilities(PIXELS, sentences)
    assert together.shape == (3, 50, 70)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert predictor.segment(PIXELS, sentences).shape == (3, 50, 70)
    one, two = predictor.segment_batch([PIXELS, PIXELS[:30]], "a ship")
    assert np.array_equal(one, alone[0] > 0.5) and two.shape == (30, 70)


def test_a_long_sentence_is_cut_in_the_warning_and_kept_in_its_fields(predictor):
    sentence = "the ship " * 3000
    with pytest.warns(ReadingWarning) as warned:
        predictor.segment(PIXELS, sentence)
    said = warned[0].message
    assert len(str(said)) < 400 and str(said).startswith("'the ship the") and "…" in str(said)
    assert said.sentence == sentence and "words were not read" in said.problem


def test_results_show_themselves_in_notebooks_and_are_arrays(bright):
    image = scene(64, 96)
    mask = bright.segment(image, "x")
    with Image.open(io.BytesIO(mask._repr_png_())) as shown:
        assert isinstance(shown, PngImagePlugin.PngImageFile) and np.array_equal(np.asarray(shown) > 0, mask)
    assert Image.open(io.BytesIO(bright.segment(image, ["x", "y"])._repr_png_())).size == (192, 64)
    assert Image.open(io.BytesIO(bright.segment_scene(image, "x", 64)[0]._repr_png_())).size == (96, 64)
    large = bright.segment(scene(100, 3000), "x")
    assert max(Image.open(io.BytesIO(large._repr_png_())).size) <= 1024
    assert isinstance(mask, np.ndarray) and type(mask & mask) is np.ndarray and type(~mask) is np.ndarray
    assert isinstance(mask.sum(), np.integer) and mask[0]._repr_png_() is None and mask.dtype == bool


def test_an_overlay_tints_the_mask_in_the_image(bright):
    image = scene(64, 96)
    mask = bright.segment(image, "x")
    drawn = bright.overlay(image, mask)
    assert drawn.size == (96, 64) and drawn._repr_png_()[:4] == b"\x89PNG"
    assert np.array_equal(np.asarray(drawn)[~mask], image[~mask]) and (np.asarray(drawn)[mask] != 255).any(1).all()
    for wrong in (mask[:5], mask.astype(float), np.stack([mask] * 3)):
        with pytest.raises(ValueError, match=r"a mask must be \(64, 96\) bool"):
            bright.overlay(image, wrong)


def test_attention_has_a_map_of_the_images_size_for_each_word(predictor):
    maps = predictor.attention(PIXELS, "the ship on the left")
    assert predictor.words("the ship on the left") == ["the", "ship", "on", "the", "left"]
    assert maps.shape == (5, 50, 70) and maps.dtype == np.float32
    assert maps.min() >= 0 and maps.max() <= 1 and (maps.sum(0) < 1).all() and maps.std() > 0
    assert predictor.attention(PIXELS, "a ship")._repr_png_()


def test_a_fusion_of_ones_own_need_not_have_attention_weights(make_predictor):
    own = make_predictor("lavt")
    assert has_word_maps(own.model)
    own.model.backbone.stages[2].fusion = torch.nn.Identity()
    assert not has_word_maps(own.model)   # a report then has no maps, and says so
    with pytest.raises(ValueError, match="this network's fusion has no attention_weights"):
        own.attention(PIXELS, "a ship")


def test_the_probability_is_the_softmax_of_the_networks_resized_logits(make_predictor):
    predictor = make_predictor("lavt")
    torch.nn.init.zeros_(predictor.model.decoder.head.weight)
    predictor.model.decoder.head.bias.data = torch.tensor([0.5, 1.5])
    found = predictor.probabilities(Image.new("RGB", (40, 30)), ["a ship", "a vehicle"])
    assert found.dtype == np.float32 and found.shape == (2, 30, 40)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-1.0)), rtol=1e-6)


def test_the_threshold_decides(bright):
    pixels = scene(64, 64)
    assert np.array_equal(bright.segment(pixels, "x"), pixels[..., 0] > 0)
    assert bright.segment(pixels, "x", threshold=0.01).all() and not bright.segment(pixels, "x", threshold=0.999).any()


def test_a_batch_is_what_each_is_alone(make_predictor):
    predictor = make_predictor()
    generator = np.random.RandomState(1)
    images = [generator.randint(0, 256, (30 + 10 * i, 40, 3), dtype=np.uint8) for i in range(5)]
    sentences = ["a ship", "the large gray airplane on the left", "a vehicle", "the chimney", "a ship at the top"]
    together = predictor.segment_batch(images, sentences, batch_size=2)
    for image, sentence, mask in zip(images, sentences, together, strict=True):
        assert np.array_equal(predictor.segment(image, sentence), mask)
    with pytest.raises(ValueError, match="5 images but 1 sentences"):
        predictor.segment_batch(images, ["a ship"])


@pytest.mark.slow
def test_lower_precision_and_folded_batch_norms_answer_alike(make_predictor):
    pixels = np.random.RandomState(2).randint(0, 256, (64, 64, 3), dtype=np.uint8)
    exact = make_predictor().probabilities(pixels, ["a ship"])
    np.testing.assert_allclose(make_predictor(fast=True).probabilities(pixels, ["a ship"]), exact, atol=1e-4)
    np.testing.assert_allclose(make_predictor(amp="bf16").probabilities(pixels, ["a ship"]), exact, atol=0.1)


def test_a_published_checkpoint_needs_to_be_described(make_predictor, tmp_path, toy):
    network = make_predictor("lavt_one").model
    torch.save({"model": network.state_dict()}, tmp_path / "published.pth")
    with pytest.raises(UserError, match="does not say what network"):
        Predictor(tmp_path / "published.pth")
    flags = ["--model", "lavt_one", "--swin_type", "nano", "--img_size", "64", "--ck_bert", str(toy / "bert"),
             "--bert_tokenizer", str(toy / "bert")]
    assert "config" not in read_checkpoint(tmp_path / "published.pth")
    assert Predictor(tmp_path / "published.pth", args=get_parser().parse_args(flags), device="cpu").size_px == 64


# Scenes


@pytest.mark.parametrize(("length", "tile", "stride", "expected"), [
    (100, 40, 30, [0, 30, 60]), (101, 40, 30, [0, 30, 60, 61]), (40, 40, 30, [0]), (39, 40, 30, [0]),
    (41, 40, 40, [0, 1])])
def test_tiles_cover_everything_and_nothing_more(length, tile, stride, expected):
    assert starts(length, tile, stride) == expected
    covered = {pixel for start in expected for pixel in range(start, min(start + tile, length))}
    assert covered == set(range(length))


def test_weights_rise_to_the_middle():
    assert tent(5).tolist() == pytest.approx([0.2, 0.4, 0.6, 0.4, 0.2])


@pytest.mark.parametrize(("height", "width", "tile", "overlap"), [
    (256, 192, 64, 0.25), (130, 201, 64, 0.5), (64, 300, 64, 0.0), (50, 40, 64, 0.25), (200, 150, 100, 0.9)])
def test_a_scene_in_tiles_is_the_scene_where_tiles_agree(bright, height, width, tile, overlap):
    """This network sees each pixel alone, so every tile gives it the same answer, up to the resizing of a tile."""
    pixels = scene(height, width)
    mask = bright.segment_scene(pixels, ["x"], tile, overlap)[0].mask
    assert mask.shape == (height, width)
    wrong = mask != (pixels[..., 0] > 0)
    assert not wrong.any() if tile == 64 and min(height, width) >= 64 else wrong.mean() < 0.05


def test_bands_come_from_top_to_bottom_without_a_gap(bright):
    picture = Image.fromarray(scene(301, 90))
    bands = list(bright.bands(picture, ["x", "y"], tile_px=64, overlap=0.25))
    assert [top for top, _ in bands] == np.cumsum([0, *(found.shape[1] for _, found in bands)])[:-1].tolist()
    assert sum(found.shape[1] for _, found in bands) == 301 and len(bands) > 4
    assert all(found.shape[::2] == (2, 90) for _, found in bands)


def test_where_tiles_overlap_the_nearer_to_its_middle_counts_more(bright):
    """Two tiles answer −1 and +1: between their middles the answer changes from one to the other."""
    answers = iter([-1.0, 1.0])
    bright.margins = lambda pictures, sentences: torch.full((1, 64, 64), next(answers))
    (_, found), = bright.bands(Image.new("RGB", (96, 64)), ["x"], tile_px=64, overlap=0.5)
    row = found[0, 30]
    assert row[:32] == pytest.approx(1 / (1 + np.exp(1))) and row[64:] == pytest.approx(1 / (1 + np.exp(-1)))
    assert (np.diff(row[32:64]) > 0).all() and row[47] + row[48] == pytest.approx(1, abs=1e-5)


def test_the_mean_probability_is_that_inside_the_mask(bright):
    pixels = scene(128, 128)
    found = bright.segment_scene(pixels, ["x"], 64, 0.0, threshold=0.5)[0]
    whole = np.concatenate([part[0] for _, part in bright.bands(Image.fromarray(pixels), ["x"], 64, 0.0)])
    assert found.mean_probability == pytest.approx(whole[found.mask].mean(), rel=1e-5)
    assert bright.segment_scene(pixels, ["x"], 64, 0.0, threshold=1.0)[0].mean_probability == 0


@pytest.mark.parametrize("tile", [64, 90])
def test_no_seam_shows_where_tiles_meet(bright, tile):
    """The same object wherever the tiles begin, also where each tile is resized for the network."""
    pixels = np.asarray(Image.fromarray(scene(40, 40)).resize((360, 300), Image.Resampling.BICUBIC))
    first = bright.segment_scene(pixels, "x", tile)[0].mask[50:250, 50:310]
    second = bright.segment_scene(pixels[21:, 21:], "x", tile)[0].mask[29:229, 29:289]
    assert first.any() and (first & second).sum() / (first | second).sum() >= (1 if tile == 64 else 0.97)


def test_pixels_without_a_value_belong_to_no_object_and_tiles_of_them_are_not_computed(bright, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    pixels = scene(128, 192)
    pixels[:, :70] = 7   # nodata
    pixels[:64, 70:] = 255
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", width=192, height=128, count=3, dtype="uint8", nodata=7,
                       crs="EPSG:32631", transform=rasterio.Affine(2, 0, 5e5, 0, -2, 5e6)) as written:
        written.write(pixels.transpose(2, 0, 1))
    computed = []
    margins = bright.margins
    bright.margins = lambda pictures, sentences: computed.append(1) or margins(pictures, sentences)
    found = bright.segment_scene(tmp_path / "a.tif", "x", 64, 0.0, threshold=0.01)[0].mask
    assert not found[:, :70].any() and found[:, 70:].all() and len(computed) == 4   # of six tiles
    assert not bright.segment(tmp_path / "a.tif", "x", threshold=0.01)[:, :70].any()


def test_a_scene_of_too_many_tiles_is_refused_before_they_are_listed(bright):
    """A GeoTIFF of a few kilobytes may claim 10⁶ × 10⁶ px, whose tiles would take 40 GB to list."""
    source = Plain(Image.new("RGB", (1, 1)))
    source.size = (10**6, 10**6)
    with pytest.raises(UserError, match=r"1000000 × 1000000 px, which are 434,055,556 tiles of 64"):
        next(bright.bands(source, ["x"], 64, 0.25))


def test_a_scene_wider_than_memory_is_refused_before_any_work(bright, monkeypatch):
    monkeypatch.setattr("lib.predictor.MOST_ROW_BYTES", 100_000)
    with pytest.raises(UserError, match="the scene is 3000 px wide: a row of tiles of 64 px would take"):
        bright.segment_scene(scene(80, 3000), ["x"], 64)


def test_a_wrong_overlap_is_refused(bright):
    with pytest.raises(ValueError, match="not between"):
        bright.segment_scene(scene(80, 80), ["x"], 64, overlap=1.0)
