"""Joint transforms: sizes, interpolation, normalisation, random boxes."""
import numpy as np
import pytest
import torch
from PIL import Image

from transforms import IMAGENET_MEAN, IMAGENET_STD, add_random_boxes, normalize, resize


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.RandomState(0).randint(1, 256, (height, width, 3), dtype=np.uint8)   # no black pixel
    return Image.fromarray(pixels)


def test_image_and_mask_are_resized_each_from_its_own_size():
    mask = np.zeros((10, 20), dtype=np.uint8)
    mask[:, 10:] = 1
    image, target = resize(picture(30, 60), mask, 8)
    assert image.shape == (3, 8, 8) and image.dtype == torch.uint8
    assert target.tolist() == [[0] * 4 + [1] * 4] * 8 and target.dtype == torch.uint8


def test_the_image_is_pillows_bilinear_and_the_mask_pillows_nearest():
    source = picture(37, 29)
    mask = (np.asarray(source)[..., 0] > 128).astype(np.uint8)
    image, target = resize(source, mask, 16)
    assert np.array_equal(image.permute(1, 2, 0), source.resize((16, 16), Image.Resampling.BILINEAR))
    assert np.array_equal(target, Image.fromarray(mask).resize((16, 16), Image.Resampling.NEAREST))


def test_a_picture_of_the_right_size_is_untouched():
    source = picture(16, 16)
    assert np.array_equal(resize(source, np.ones((16, 16), np.uint8), 16)[0].permute(1, 2, 0), source)


def test_normalisation_by_hand():
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = [(value - mean) / std for value, mean, std in zip((0, 0.2, 1), IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    assert normalize(image).flatten().tolist() == pytest.approx(expected, rel=1e-6)


def test_random_boxes_are_20_to_60_black_squares_of_32_px():
    source = picture(800, 400)
    for seed in range(5):
        boxed = np.asarray(add_random_boxes(source, torch.Generator().manual_seed(seed)))
        black = (boxed == 0).all(-1)
        assert 0 < black.sum() <= 60 * 32 * 32
        assert np.array_equal(boxed[~black], np.asarray(source)[~black])   # nothing else changes
        rows = np.flatnonzero(black.any(1))
        assert rows.max() == 399   # heights are drawn from the width: some boxes are cut or fall outside
    assert (np.asarray(source) != 0).all()   # the source is left alone


def test_random_boxes_follow_their_generator():
    def draw(seed):
        return np.asarray(add_random_boxes(picture(100, 100), torch.Generator().manual_seed(seed)))
    assert np.array_equal(draw(1), draw(1)) and not np.array_equal(draw(1), draw(2))


def test_random_boxes_on_an_image_narrower_than_a_box():
    assert (np.asarray(add_random_boxes(picture(20, 20), torch.Generator().manual_seed(0))) == 0).all()
