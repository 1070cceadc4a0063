"""demo_inference.py and the contact sheet, on a network that has learnt nothing."""
import numpy as np
import pytest
import torch
from PIL import Image

import demo_inference
from bert import load_tokenizer
from lib.checkpoint import save_checkpoint
from lib.segmentation import ModelConfig, describe_model
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


def test_every_image_and_sentence_gets_a_mask_and_an_overlay_of_the_images_size(checkpoint, tmp_path, monkeypatch):
    pixels = np.random.RandomState(0).randint(0, 255, (90, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "colour.png")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "gray.jpg")
    run(demo_inference, monkeypatch, "--resume", checkpoint, "--image", tmp_path / "colour.png", tmp_path / "gray.jpg",
        "--sentence", "The ship on the left", "a red vehicle", "--out", tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == sorted(f"{image}-{sentence}-{kind}.png" for image in ("colour", "gray")
                           for sentence in ("the-ship-on-the-left", "a-red-vehicle") for kind in ("mask", "overlay"))
    mask = Image.open(tmp_path / "out/colour-a-red-vehicle-mask.png")
    assert mask.size == (70, 90) and set(np.unique(mask)) <= {0, 255}
    shown = np.asarray(Image.open(tmp_path / "out/colour-a-red-vehicle-overlay.png"))
    outside = np.asarray(mask) == 0
    assert np.array_equal(shown[outside], pixels[outside])


def test_a_file_that_is_no_image_is_one_line_and_status_2(checkpoint, tmp_path, monkeypatch, capsys):
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(SystemExit) as stop:
        run(demo_inference, monkeypatch, "--resume", checkpoint, "--image", tmp_path / "text.png", "--sentence", "ship")
    printed = capsys.readouterr().err
    assert stop.value.code == 2 and "text.png cannot be read" in printed and printed.count("\n") == 1


def test_the_probability_is_the_networks(nano, toy):
    network, tokenizer = nano("lavt"), load_tokenizer(str(toy / "bert"))
    torch.nn.init.zeros_(network.decoder.head.weight)
    network.decoder.head.bias.data = torch.tensor([0.0, 1.0])
    probability = demo_inference.segment(network, tokenizer, Image.new("RGB", (40, 30)), ["a ship", "a vehicle"], 64)
    assert probability.shape == (2, 30, 40)
    torch.testing.assert_close(probability, torch.full((2, 30, 40), torch.sigmoid(torch.tensor(1.0)).item()))


def test_a_contact_sheet(checkpoint, toy, tmp_path, monkeypatch, capsys):
    run(contact_sheet, monkeypatch, "--resume", checkpoint, "--refer_data_root", toy, "--split", "val", "--samples", 3,
        "--out", tmp_path / "sheet.png")
    assert "3 samples of rrsisd val" in capsys.readouterr().out
    width, height = Image.open(tmp_path / "sheet.png").size
    assert width > 2 * 3 * 192 and height > 2 * 192   # two columns of three panels, two rows
