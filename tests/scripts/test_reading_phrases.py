"""A network that reads phrases works with every program as the others do: here FIANet."""
import json

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from args import get_parser
from bert import load_tokenizer
from lib.checkpoint import describe_model, peek, save_checkpoint
from lib.predictor import Predictor
from lib.segmentation import ModelConfig, build
from refer.categories import CLASS_NAMES
from tests.launch import nano_flags, run_script
from utils import UserError

pytestmark = pytest.mark.usefixtures("narrow_nano")

SENTENCE = "The ship on the left"


@pytest.fixture(scope="module")
def save(toy, nltk_data, tmp_path_factory):
    """Saves a nano FIANet with random weights, as train.py does; save(class_names) -> path."""
    def make(class_names=CLASS_NAMES["rrsisd"]):
        config = ModelConfig(**{**ModelConfig.from_args(get_parser().parse_args(
            ["--model", "fianet", "--swin_type", "nano", "--img_size", "64", "--num_tmem", "1", "--ck_bert",
             str(toy / "bert")])).__dict__, "class_names": tuple(class_names)})
        assert config.reads_phrases and config.max_tokens == 22
        torch.manual_seed(0)
        path = tmp_path_factory.mktemp("fianet") / "c.pth"
        save_checkpoint(path, {"model": build(config).state_dict(),
                               **describe_model(config, load_tokenizer(str(toy / "bert")))})
        return path
    return make


@pytest.fixture(scope="module")
def checkpoint(save):
    return save()


def picture(toy):
    return sorted((toy / "images/rrsisd/JPEGImages").iterdir())[0]


@pytest.mark.slow
def test_every_program_takes_it(checkpoint, toy, tmp_path):
    data = ("--refer_data_root", toy, "--dataset", "rrsisd", "--split", "val", "--workers", 0, "--resume", checkpoint)
    commands = {
        "test.py": (*data, "--results", "val.json", "--save_predictions", "masks", "--report", "report",
                    "--report_attention"),
        "tools/score_predictions.py": ("--predictions", "masks", "--refer_data_root", toy, "--split", "val",
                                       "--results", "scored.json"),
        "tools/contact_sheet.py": (*data, "--samples", 2),
        "tools/probe_language.py": (*data, "--samples", 2, "--out", "probe.json"),
        "demo_inference.py": ("--resume", checkpoint, "--image", picture(toy), "--sentence", SENTENCE, "--json")}
    for script, flags in commands.items():
        done = run_script(script, *flags, cwd=tmp_path)
        assert done.returncode == 0, f"{script}: {done.stderr}"
    results = json.loads((tmp_path / "val.json").read_text())
    assert json.loads((tmp_path / "scored.json").read_text())["samples"] == results["samples"]
    assert json.loads((tmp_path / "probe.json").read_text())["samples"] == 2

    # As a library it gives the masks of test.py, where the sentences are marked beforehand.
    predictor = Predictor(checkpoint, device="cpu")
    for entry in json.loads((tmp_path / "masks/predictions.json").read_text()):
        name = f"{entry['image_id']:05d}.jpg"
        mask = predictor.segment(toy / "images/rrsisd/JPEGImages" / name, entry["sentence"])
        assert np.array_equal(mask, coco_mask.decode(entry["segmentation"]).astype(bool))


def test_the_phrases_are_heard(checkpoint, toy):
    """The same words give the same bits, and another mask of the object gives others.

    The object needs two words: if each pixel reads the same word, the InstanceNorm over pixels is 0.
    """
    sentence, predictor = "The tennis court on the left", Predictor(checkpoint, device="cpu")
    said, again = (predictor.probabilities(picture(toy), [sentence]) for _ in range(2))
    predictor.marker.class_names = ("dam",)
    assert np.array_equal(said, again) and not np.array_equal(said, predictor.probabilities(picture(toy), [sentence]))


def test_a_checkpoint_without_class_names_needs_them(save, toy):
    path = save(())
    with pytest.raises(UserError, match="the checkpoint names none, as original ones do not: give class_names"):
        Predictor(path, device="cpu")
    assert Predictor(path, device="cpu", class_names=["ship"]).segment(picture(toy), SENTENCE).shape == (64, 64)


def training_flags(toy, model: str) -> list[str]:
    return nano_flags(toy, "--model", model, "--dataset", "rrsisd", "--epochs", 1, "--batch-size", 4,
                      "--model_id", "new", "--masked_pass")


def test_without_nltk_training_ends_with_what_to_install(toy, nltk_data, tmp_path, monkeypatch):
    import nltk
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    nltk.tokenize._get_punkt_tokenizer.cache_clear()
    done = run_script("train.py", *training_flags(toy, "fianet"), cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "pip install nltk, then python -m nltk.downloader punkt_tab" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("model", ["lgce", "fianet"])
def test_two_processes_train_it(toy, nltk_data, tmp_path, model):
    """Every trained parameter takes a gradient in each step, or DDP would stop; here with the second pass."""
    done = run_script("train.py", *training_flags(toy, model), cwd=tmp_path, processes=2)
    assert done.returncode == 0, done.stderr
    assert "2 process(es) on cpu" in done.stdout and "finished:" in done.stdout
    names = peek(tmp_path / "checkpoints/model_last_new.pth", "config")["class_names"]
    assert tuple(names) == (CLASS_NAMES["rrsisd"] if model == "fianet" else ())
