"""Which samples a report shows, and the small pictures of them."""
import io

import numpy as np
import torch
from PIL import Image

from lib.evaluation.predictions import Prediction, encode_mask
from lib.report.attention_maps import heat_strip, word_maps
from lib.report.gallery import LONGEST_SIDE_PX, choose, make_gallery
from tests.conftest import make_inputs


def samples(*ious: int) -> list[dict]:
    return [{"intersection": iou, "union": 100} for iou in ious]


def test_chosen_samples_are_spread_over_the_order_by_iou():
    assert choose(samples(50, 10, 90, 70, 30), 3) == [0, 1, 2]      # worst, middle, best, as they stand
    assert choose(samples(50, 10, 90), 10) == [0, 1, 2]
    assert choose(samples(5), 1) == [0]


def test_pictures_are_small_and_outlines_in_their_pixels():
    mask = np.zeros((600, 1200), dtype=bool)
    mask[150:450, 300:900] = True
    truth = np.zeros((300, 600), dtype=np.uint8)   # RRSIS-D has masks of another size than their images
    truth[:150] = 1
    picture, = make_gallery(samples(50), [Prediction(encode_mask(mask), 0.9)],
                            lambda place: (Image.new("RGB", (1200, 600), "red"), truth), most=5)
    assert (picture.width_px, picture.height_px) == (LONGEST_SIDE_PX, LONGEST_SIDE_PX // 2)
    assert Image.open(io.BytesIO(picture.jpeg)).size == (256, 128)
    for parts, box in [(picture.prediction, (64, 32, 192, 96)), (picture.truth, (0, 0, 256, 64))]:
        (outer,), = parts
        points = np.reshape(outer, (-1, 2))
        assert np.abs(np.concatenate([points.min(0), points.max(0)]) - box).max() <= 1
    assert not picture.attention


def test_a_words_map_is_its_share_of_each_pixels_attention(nano):
    network = nano("rmsin", img_size=64)
    image, token_ids, token_mask = make_inputs(2, 64)
    maps = word_maps(network, image, token_ids, token_mask)
    assert maps.shape == (2, 20, 4, 4)
    torch.testing.assert_close(maps.sum(1), torch.ones(2, 4, 4))
    assert not maps[token_mask == 0].any()
    assert not network.backbone.stages[2].fusion._forward_pre_hooks   # as it was before


def test_a_strip_has_a_picture_for_each_token_on_one_scale(tokenizer):
    token_ids, token_mask = torch.tensor([2, tokenizer.token_to_id("ship"), 3, 0]), torch.tensor([1, 1, 1, 0])
    maps = torch.zeros(4, 2, 3)
    maps[1, 0, 0], maps[2, 1, 2] = 0.8, 0.4
    strip = heat_strip(maps, token_ids, token_mask, tokenizer)
    assert [word for word, _ in strip] == ["[CLS]", "ship", "[SEP]"]
    shown = [np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int).sum(2) for _, png in strip]
    assert shown[0].max() == 0 and shown[1][0, 0] == 3 * 255 and 0 < shown[2][1, 2] < 3 * 255
