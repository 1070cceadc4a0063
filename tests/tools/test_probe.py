"""The probe's sentences and tables, and the command on a network that hears one word only."""
import json

import pytest
import torch

from lib.checkpoint import describe_model, save_checkpoint
from lib.segmentation import ModelConfig
from tools import probe_language
from tools.probe_language import ORIGINAL, WORST_WORD, masked, summarize, variants

SAMPLE = {"ref_id": 3, "sent_id": 4, "category": "storagetank", "sentence": "The large tank on the left"}


def test_the_sentences_shown():
    asked = variants(SAMPLE, "A ship", seed=1)
    assert asked[ORIGINAL] == "The large tank on the left" and asked["another ref's sentence"] == "A ship"
    assert asked["category alone"] == "storage tank" and asked["no sentence"] == ""
    assert asked["without position words"] == "The large tank"
    assert asked["without attribute words"] == "The tank on the left"
    shuffled = asked["words in random order"]
    assert sorted(shuffled.split()) == sorted(SAMPLE["sentence"].split()) and shuffled != SAMPLE["sentence"]
    assert variants(SAMPLE, "A ship", seed=1) == asked != variants(SAMPLE, "A ship", seed=3)


def test_each_word_is_masked_once():
    assert masked("The tank, the dam", "[MASK]") == {
        "the": "[MASK] tank, the dam", "tank": "The [MASK] the dam", "dam": "The tank, the [MASK]"}


def test_the_tables_by_hand():
    def row(image, without, losses):
        return {"image_id": image, "iou": {ORIGINAL: 80.0, "no sentence": without},
                "changed": {ORIGINAL: False, "no sentence": True}, "losses": losses}

    tables = summarize([row(0, 30.0, {"left": 50.0, "the": 0.0}), row(1, 10.0, {"left": 70.0}),
                        row(2, 20.0, {"left": 30.0, "the": 2.0})])
    original, none = tables["conditions"]
    assert (original["mIoU"], original["change"], original["interval"], original["changed"]) == (80, 0, None, 0)
    assert (none["mIoU"], none["change"], none["changed"]) == (20, -60, 3)
    assert -70 <= none["interval"][0] < -60 < none["interval"][1] <= -50
    assert tables["words"] == [{"word": "left", "times": 3, "mean_loss": 50.0}]   # "the" is too rare


class Listener(torch.nn.Module):
    """Marks every pixel if the sentence holds one token, and none otherwise."""

    def __init__(self, token: int):
        super().__init__()
        self.token = token

    def forward(self, image, token_ids, token_mask):
        heard = (token_ids == self.token).any(1).float()
        found = (2 * heard - 1)[:, None, None].expand(-1, *image.shape[-2:])
        return torch.stack([torch.zeros_like(found), found], dim=1)


def test_the_command_finds_the_word_that_a_network_hears(nano, toy, tokenizer, refer, tmp_path, monkeypatch, capsys):
    network = nano("rmsin")
    config = ModelConfig("rmsin", "nano", 4, 64, (1, 1, 1, 1), 0.0, network.text_encoder.config.to_diff_dict())
    save_checkpoint(tmp_path / "c.pth", {"model": network.state_dict(), **describe_model(config, tokenizer)})
    sentence = refer.loadRefs(refer.getRefIds(split="val"))[0]["sentences"][0]["raw"]
    word = sentence.split()[-1].lower()
    listener = Listener(tokenizer.token_to_id(word))
    monkeypatch.setattr(probe_language, "restore", lambda path, args: (listener, config, tokenizer))
    monkeypatch.setattr(probe_language, "FEWEST_TIMES", 1)
    monkeypatch.setattr("sys.argv", ["probe_language.py", "--resume", str(tmp_path / "c.pth"), "--refer_data_root",
                                     str(toy), "--split", "val", "--out", str(tmp_path / "probe.json")])
    probe_language.main()
    assert "| original | 0 |" in capsys.readouterr().out
    written = json.loads((tmp_path / "probe.json").read_text())
    conditions = {row["name"]: row for row in written["conditions"]}
    assert conditions[ORIGINAL]["mIoU"] == conditions["words in random order"]["mIoU"] > 0
    assert conditions["no sentence"]["mIoU"] == conditions[WORST_WORD]["mIoU"] == 0
    assert written["words"][0]["word"] == word and all(row["mean_loss"] == 0 for row in written["words"][1:])
    assert written["samples"] == 4 and written["checkpoint"]["sha256"]
    with pytest.raises(SystemExit) as stop:
        monkeypatch.setattr("sys.argv", ["probe_language.py", "--samples", "0"])
        probe_language.main()
    assert stop.value.code == 2
