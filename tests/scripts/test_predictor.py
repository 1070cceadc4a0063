"""The predictor as a library: one image or many, of any kind and size, and scenes tile by tile."""
import numpy as np
import pytest
import torch
from PIL import Image

from args import get_parser
from lib.checkpoint import read_checkpoint
from lib.predictor import Predictor, ReadingWarning, starts, tent
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


def test_every_kind_of_image_gives_a_mask_of_its_size(make_predictor, tmp_path):
    predictor = make_predictor()
    pixels = np.random.RandomState(0).randint(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    masks = [predictor.segment(image, "the ship on the left") for image in
             (pixels, Image.fromarray(pixels), tmp_path / "a.png", str(tmp_path / "a.png"))]
    assert masks[0].shape == (50, 70) and masks[0].dtype == bool
    assert all(np.array_equal(mask, masks[0]) for mask in masks)
    assert predictor.segment(Image.fromarray(pixels).convert("RGBA"), "a ship").shape == (50, 70)


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


def test_a_wrong_overlap_is_refused(bright):
    with pytest.raises(ValueError, match="not between"):
        bright.segment_scene(scene(80, 80), ["x"], 64, overlap=1.0)
