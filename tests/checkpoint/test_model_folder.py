"""A model as a folder: a checkpoint without pickles, strict, whole or not at all; to the hub and from it."""
import json
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from args import get_parser
from bert import load_tokenizer
from lib.checkpoint import restore, weights_file
from lib.checkpoint.model_folder import SHARED_FILES, push_folder, write_folder
from lib.checkpoint.starting import make_network
from lib.predictor import Predictor
from lib.segmentation import ModelConfig
from lib.training.resume import choose_start, goes_on
from tests.conftest import put_into
from tests.launch import ROOT
from utils import UserError


@pytest.fixture
def folder(nano, toy, tmp_path) -> Path:
    network = nano("lavt")
    config = ModelConfig("lavt", "nano", 4, 64, (1, 1, 1, 1), 0.0, network.text_encoder.config.to_diff_dict())
    write_folder(tmp_path / "model", network.state_dict(), config, load_tokenizer(str(toy / "bert")), "a card")
    return tmp_path / "model"


def test_a_folder_is_a_checkpoint(folder, nano, tmp_path):
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(SHARED_FILES)
    network, config, tokenizer = restore(str(folder), get_parser().parse_args([]))
    expected = nano("lavt").state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    assert (config.model, config.img_size) == ("lavt", 64) and tokenizer.encode("the ship").ids[1] > 4
    with pytest.raises(UserError, match="--img_size 96 was given, but the checkpoint was trained with 64"):
        restore(str(folder), get_parser().parse_args(["--img_size", "96"]))


def test_a_users_folder_beside_it_is_left_alone(folder, monkeypatch):
    mine = folder.with_name("next.tmp")
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    network, config, tokenizer = restore(str(folder), None)
    for fails in (True, False):
        with monkeypatch.context() as patch:
            if fails:
                patch.setattr("lib.checkpoint.model_folder.write_json", lambda *_: 1 / 0)
                with pytest.raises(UserError):
                    write_folder(folder.with_name("next"), network.state_dict(), config, tokenizer, "")
            else:
                write_folder(folder.with_name("next"), network.state_dict(), config, tokenizer, "")
        assert [path.name for path in mine.iterdir()] == ["notes.txt"]
    assert sorted(path.name for path in folder.with_name("next").iterdir()) == sorted(SHARED_FILES)


def test_a_training_run_starts_from_a_folder(folder, nano):
    expected = nano("lavt").state_dict()
    path, content = choose_start(str(folder), folder.parent, "x", restarted=False)
    assert path == str(folder) and not goes_on(content)
    for flags, resumed in ((["--init_from", str(folder)], {}), (["--resume", path], content)):
        network, *_ = make_network(get_parser().parse_args(flags), resumed)
        assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())


def test_nothing_is_overwritten_and_nothing_half_written(folder, nano, toy, monkeypatch):
    network, config, tokenizer = restore(str(folder), None)
    with pytest.raises(UserError, match=r"--out .*model exists already"):
        write_folder(folder, network.state_dict(), config, tokenizer, "")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lib.checkpoint.model_folder.write_json", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_folder(folder.parent / "another", network.state_dict(), config, tokenizer, "")
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def change_weights(folder: Path, **entries: torch.Tensor) -> None:
    weights_file(folder).with_name("model.safetensors.sha256").unlink()
    save_file({**load_file(weights_file(folder)), **entries}, weights_file(folder))


def change_config(folder: Path, **entries: object) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **entries}))


HEAD = "decoder.head.bias"


@pytest.mark.parametrize(("damage", "message"), [
    (lambda folder: weights_file(folder).write_bytes(weights_file(folder).read_bytes()[:-1]), "its SHA-256 is not"),
    (lambda folder: change_weights(folder, **{HEAD: torch.tensor([0, float("nan")])}), "1 with NaN or infinite values"),
    (lambda folder: change_weights(folder, **{HEAD: torch.zeros(3)}), r"decoder\.head\.bias is \(3,\), needed \(2,\)"),
    (lambda folder: change_weights(folder, **{HEAD: torch.zeros(2).long()}), "is of torch.int64, needed torch.float32"),
    (lambda folder: change_weights(folder, more=torch.zeros(1)), "1 unexpected: more"),
    (lambda folder: change_config(folder, swin_type="base"), "the weights suggest --swin_type nano"),
    (lambda folder: change_config(folder, depth=3), "has 'depth', which is not known"),
    (lambda folder: change_config(folder, model="sam"), "model must be one of"),
    (lambda folder: (folder / "config.json").write_text("[" * 100_000), "nested too deeply"),
    (lambda folder: (folder / "config.json").write_text("7"), "config: must be an object"),
    (lambda folder: (folder / "config.json").unlink(), "is a folder without config.json: give a checkpoint file"),
    (lambda folder: (folder / "tokenizer.json").write_text("{}"), "the tokenizer's text is damaged"),
    (lambda folder: (folder / "tokenizer.json").write_bytes(b"\xff"), "tokenizer.json cannot be read"),
    (lambda folder: weights_file(folder).unlink(), "is a folder without model.safetensors")])
def test_a_damaged_folder_is_one_line(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message) as refused:
        restore(str(folder), None)
    assert "\n" not in str(refused.value)


# The hub


def test_a_repository_in_the_cache_needs_no_network(folder, hub_cache):
    put_into(hub_cache, "somebody/ships", folder)
    image = np.random.RandomState(0).randint(0, 255, (50, 70, 3), dtype=np.uint8)
    masks = [Predictor.from_pretrained(source, device="cpu").segment(image, "the ship on the left")
             for source in ("somebody/ships", folder)]
    assert masks[0].shape == (50, 70) and np.array_equal(*masks)


def test_a_repository_that_is_nowhere_or_of_something_else_is_one_line(folder, hub_cache):
    (folder / "tokenizer.json").unlink()
    put_into(hub_cache, "somebody/ships", folder)
    for name in ("somebody/ships", "nobody/none", "no name"):
        with pytest.raises(UserError, match=f"from_pretrained {name}: no such folder or file, and neither"):
            Predictor.from_pretrained(name)


class Client:
    """Stands in for the hub's client: records what it is asked, and refuses if it is to."""

    asked: list[tuple]
    refusal: Exception | None = None

    def create_repo(self, name, **settings):
        if self.refusal:
            raise self.refusal
        self.asked.append((name, settings))

    def upload_folder(self, **settings):
        self.asked.append((settings["repo_id"], sorted(settings["allow_patterns"]), settings["folder_path"]))
        return "https://hub/somebody/ships"


def test_a_push_uploads_the_folders_files_to_a_private_repository(folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Client)
    Client.asked = []
    assert push_folder(folder, "somebody/ships") == "https://hub/somebody/ships"
    assert Client.asked == [("somebody/ships", {"private": True, "exist_ok": True}),
                            ("somebody/ships", sorted(SHARED_FILES), folder)]
    monkeypatch.setattr(Client, "refusal", huggingface_hub.errors.LocalTokenNotFoundError("no token\nat all"))
    with pytest.raises(UserError, match=r"--push somebody/ships: .*no token .`hf auth") as refused:
        push_folder(folder, "somebody/ships")
    assert "\n" not in str(refused.value) and folder.is_dir()


def test_torch_hub_takes_a_checkout(folder):
    predictor = torch.hub.load(str(ROOT), "predictor", str(folder), source="local", device="cpu")
    assert predictor.segment(np.zeros((20, 30, 3), dtype=np.uint8), "a ship").shape == (20, 30)
