"""tools/export.py: a folder with a model card, graphs that need no other file, and no file after a failure."""
import json
import re
from pathlib import Path

import huggingface_hub
import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

from bert import load_tokenizer
from lib import export
from lib.checkpoint import describe_model, read_checkpoint, restore, save_checkpoint
from lib.evaluation.result_files import read_evaluation
from lib.export import export_graph, input_names, random_inputs
from lib.predictor import Predictor
from lib.report.model_card import model_card
from lib.segmentation import MODELS, ModelConfig
from tests.conftest import TEXT
from tests.launch import run_script
from utils import MachineError, UserError, sha256_of

pytestmark = pytest.mark.usefixtures("narrow_nano")


def make_checkpoint(nano, toy, path: Path, model: str) -> Path:
    """The checkpoint of a nano network for images of 64 px with random weights, and the toy set's tokenizer."""
    tokenizer = load_tokenizer(str(toy / "bert"))
    text = {**TEXT, "vocab_size": tokenizer.get_vocab_size()}
    network = nano(model, text=text, num_tmem=1)
    config = ModelConfig(model, "nano", 4, 64, (1, 1, 1, 1), 0.0, network.text_encoder.config.to_diff_dict(),
                         num_tmem=1)
    save_checkpoint(path, {"model": network.state_dict(), "args": {"dataset": "rrsisd", "lr": 5e-4, "epochs": 3,
                                                                   "ck_bert": "/home/me/secret/bert"},
                           **describe_model(config, tokenizer)})
    return path


def run_export(cwd: Path, *flags: object) -> str:
    done = run_script("tools/export.py", *flags, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# Model folders


def evaluate(toy: Path, cwd: Path, checkpoint: str, *flags: str) -> dict:
    done = run_script("test.py", "--refer_data_root", toy, "--split", "val", "--workers", 0, "--resume", checkpoint,
                      "--results", "r.json", *flags, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((cwd / "r.json").read_text())


@pytest.mark.slow
def test_a_folder_evaluates_to_the_same_integers_and_its_card_says_them(nano, toy, tmp_path):
    make_checkpoint(nano, toy, tmp_path / "c.pth", "rmsin")
    results = evaluate(toy, tmp_path, "c.pth")
    said = run_export(tmp_path, "--resume", "c.pth", "--to", "folder", "--out", "ships", "--results", "r.json")
    assert "wrote ships: --resume ships takes it" in said
    again = evaluate(toy, tmp_path, "ships")
    assert again["samples"] == results["samples"] and again["mIoU"] == results["mIoU"]
    assert again["checkpoint"]["sha256"] == sha256_of(tmp_path / "ships/model.safetensors")

    card = (tmp_path / "ships/README.md").read_text()
    low, high = results["intervals"]["mIoU"]
    assert f"| mean IoU | {results['mIoU']:.2f} | {low:.2f} to {high:.2f} |" in card
    assert "the toy set, split `val`, 4 sentences." in card and 'from_pretrained("ships")' in card
    assert "| lr | 0.0005 |" in card and "| ck_bert | `bert` |" in card and "secret" not in card
    front = huggingface_hub.ModelCard(card).data
    assert (front.model_name, front.tags) == ("ships", ["referring-image-segmentation", "rmsin"])
    found = {result.metric_name: result.metric_value for result in front.eval_results}
    assert found["overall IoU"] == round(results["oIoU"], 2) and len(found) == 8

    evaluate(toy, tmp_path, "ships", "--shuffle_sentences")
    for flags, message in ((["--resume", "ships"], "r.json is a control experiment, --shuffle_sentences"),
                           (["--resume", "c.pth", "--push", "x"], "'x' is not of the form USER/NAME")):
        done = run_script("tools/export.py", *flags, "--to", "folder", "--out", "no", "--results", "r.json",
                          cwd=tmp_path)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "no").exists()


def sample(**changes) -> dict:
    return {"ref_id": 1, "sent_id": 1, "image_id": 1, "sentence": "", "intersection": 3, "union": 4, "object_px": 3,
            "boundary_intersection": 1, "boundary_union": 2, "category": "ship", "kind": "plain",
            "object_size": "empty", "words": "1 to 3", **changes}


def results_of(tmp_path, **changes) -> str:
    content = {"samples": [sample()], "split": "val", "dataset": "rrsisd", "left_out": 0, "flags": {},
               "checkpoint": {"sha256": "a" * 64}, **changes}
    (tmp_path / "results.json").write_text(json.dumps(content))
    return str(tmp_path / "results.json")


@pytest.mark.parametrize(("changes", "message"), [
    ({"checkpoint": {"sha256": "b" * 64}}, "is of other weights: their SHA-256 begins with bbbbbbbbbbbb"),
    ({"checkpoint": None}, "checkpoint must be an object with sha256"),
    ({"flags": {"shuffle_sentences": True}}, "is a control experiment"),
    ({"flags": {"ema": True}}, "is of the averaged weights of this checkpoint, not of its weights: give --ema to"),
    ({"samples": []}, "samples must be a list"), ({"dataset": 3}, "dataset must be a text")])
def test_results_of_anything_else_are_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        read_evaluation(results_of(tmp_path, **changes), "a" * 64, averaged=False)


def test_text_from_files_stays_text_on_the_card(tmp_path):
    odd = "x`|\n---\n# [x](y)\x1b"
    results = read_evaluation(results_of(tmp_path, dataset=odd, split=odd), "a" * 64, averaged=False)
    config = ModelConfig("lavt", "nano", 4, 64, (1, 1, 1, 1), 0.0, TEXT)
    card = model_card("a", config, {"dataset": odd, "amp": ["x|y"]}, results)
    assert huggingface_hub.ModelCard(card).data.eval_results[0].dataset_split == odd
    body = card.split("\n---\n", 1)[1]
    assert "\x1b" not in body and not re.search(r"^(# \[|---$)", body, re.M)
    assert "`x'¦ --- # [x](y)\\x1b`, split `x'¦" in body and "| amp | ['x¦y'] |" in body


def test_the_averaged_weights_are_exported_if_asked_for(nano, toy, tmp_path):
    make_checkpoint(nano, toy, tmp_path / "c.pth", "lavt")
    flags = ["--resume", "c.pth", "--to", "folder", "--out", "average", "--ema"]
    done = run_script("tools/export.py", *flags, cwd=tmp_path)
    assert done.returncode == 2 and "--ema: checkpoint c.pth holds no averaged weights" in done.stderr
    content = read_checkpoint(tmp_path / "c.pth")
    average = {name: value * 0.5 if value.is_floating_point() else value for name, value in content["model"].items()}
    save_checkpoint(tmp_path / "c.pth", {**content, "ema": average})
    run_export(tmp_path, *flags)
    state = read_checkpoint(tmp_path / "average")["model"]
    assert all(torch.equal(value, average[name]) for name, value in state.items())
    assert "| weights | `their exponential moving average" in (tmp_path / "average/README.md").read_text()


# Graphs


def probability_by(run, texts: dict[str, str], picture: Image.Image, sentence: str) -> np.ndarray:
    """The object's probability (S, S) from a graph and what its file says of itself, nothing of this project."""
    description = json.loads(texts["description"])
    image, ids = (description["inputs"][name] for name in ("image", "token_ids"))
    side, tokens = image["shape"][-1], ids["shape"][-1]
    pixels = np.asarray(picture.convert("RGB").resize((side, side), Image.Resampling.BILINEAR), dtype=np.float32)
    pixels = (pixels * image["scale"] - image["mean"]) / image["std"]
    found = Tokenizer.from_str(texts["tokenizer"]).encode(sentence).ids[:tokens]
    padding = [0] * (tokens - len(found))
    given = {"image": pixels.transpose(2, 0, 1)[None].astype(np.float32), "token_ids": np.array([found + padding]),
             "token_mask": np.array([[1] * len(found) + padding])}
    assert list(given) == list(description["inputs"])
    logits = run(given)
    return 1 / (1 + np.exp(logits[0, 0] - logits[0, 1]))


@pytest.mark.slow
@pytest.mark.parametrize("model", sorted(set(MODELS) - {"lavt", "lavt_one"}))   # which have no part of their own
def test_a_graph_needs_nothing_but_its_file(nano, toy, tmp_path, model):
    """In ONNX; a command of docs/deployment.md writes the other form."""
    checkpoint = make_checkpoint(nano, toy, tmp_path / "c.pth", model)
    network, config, tokenizer = restore(str(checkpoint), None)
    said = export_graph(network, config, tokenizer, "onnx", tmp_path / "m.onnx")
    batch, words = (1, "one image at a time") if config.decoder_conv == "arc" else ("batch", "any batch")
    assert f"for {words}; its logits differ" in said
    assert float(re.search(r"at most (\S+) of", said)[1]) <= 1e-4

    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    texts = session.get_modelmeta().custom_metadata_map
    assert {given.shape[0] for given in session.get_inputs()} == {batch}

    def run(given: dict[str, np.ndarray]) -> np.ndarray:
        return session.run(["logits"], given)[0]

    inputs = random_inputs(network, config, batch=1, seed=5)
    given = dict(zip(input_names(network), (value.numpy() for value in inputs), strict=True))
    torch.testing.assert_close(torch.from_numpy(run(given)), network(*inputs), rtol=1e-4, atol=1e-5)
    if len(given) == 3:   # a predictor finds phrases by itself
        picture = Image.open(next((toy / "images/rrsisd/JPEGImages").iterdir()))
        own = Predictor(checkpoint, device="cpu").probabilities(picture, ["the ship on the left"])[0]
        np.testing.assert_allclose(probability_by(run, texts, picture, "the ship on the left"), own, atol=1e-4)


@pytest.mark.parametrize("difference", [1e-2, float("nan")])
def test_a_file_that_computes_something_else_is_not_left(nano, toy, tmp_path, monkeypatch, difference):
    network, config, tokenizer = restore(str(make_checkpoint(nano, toy, tmp_path / "c.pth", "lavt")), None)
    (tmp_path / "m.pt2").write_text("an older file")
    monkeypatch.setattr(export, "trace", lambda *_: None)
    monkeypatch.setitem(export.FORMS, "torch", (lambda program, texts, path: path.write_text("a file"),
                                                lambda path: lambda inputs: network(*inputs) + difference))
    with pytest.raises(MachineError, match=r"the logits of the file differ from the network's by (\d\.\de-0\d|nan) of"):
        export_graph(network, config, tokenizer, "torch", tmp_path / "m.pt2")
    assert (tmp_path / "m.pt2").read_text() == "an older file"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.pth", "c.pth.sha256", "m.pt2"]


def test_what_cannot_be_done_is_said_before_work(nano, toy, tmp_path, monkeypatch):
    network, config, tokenizer = restore(str(make_checkpoint(nano, toy, tmp_path / "c.pth", "lavt")), None)
    monkeypatch.setattr(export, "find_spec", lambda name: None if name.startswith("onnx") else name)
    with pytest.raises(UserError, match="not installed: pip install onnx onnxscript onnxruntime"):
        export_graph(network, config, tokenizer, "onnx", tmp_path / "m.onnx")
    monkeypatch.setattr(export, "find_spec", lambda name: name)
    monkeypatch.setattr(export, "LARGEST_ONNX", 10)
    with pytest.raises(UserError, match="MiB of weights are more than an ONNX file holds; use --to torch"):
        export_graph(network, config, tokenizer, "onnx", tmp_path / "m.onnx")
    with pytest.raises(UserError, match="is a folder: give the name of a file"):
        export_graph(network, config, tokenizer, "torch", tmp_path)
    done = run_script("tools/export.py", "--resume", "c.pth", "--to", "torch", "--out", "m.pt2", "--push", "me/m",
                      cwd=tmp_path)
    assert done.returncode == 2 and "--results and --push belong to --to folder" in done.stderr
