"""train.py and test.py as a user runs them: one epoch and an evaluation, several processes, mistakes."""
import hashlib
import json
import pickle
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.toy.writer import MARKER
from distributed import EXIT_REQUEUE
from lib.checkpoint import read_checkpoint, save_checkpoint
from lib.segmentation import PARTS, Part
from tests.conftest import save_nano_checkpoint
from tests.launch import Forked, assert_refused, nano_flags, run_script

pytestmark = pytest.mark.usefixtures("narrow_nano")


def training_flags(toy: Path) -> list[str]:
    return nano_flags(toy, "--lr", 3e-4)


@pytest.fixture(scope="module")
def trained(toy, tmp_path_factory) -> Path:
    """A folder in which train.py ran for one epoch, keeping an average of the weights."""
    folder = tmp_path_factory.mktemp("run")
    done = run_script("train.py", *training_flags(toy), "--epochs", 1, "--batch-size", 8, "--model_id", "toy",
                      "--tensorboard", "--ema", 0.5, "--seed", 1, cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "printed.txt").write_text(done.stdout)
    return folder


def evaluate(folder: Path, toy: Path, name: str, *flags: object, processes: int = 1) -> dict:
    done = run_script("test.py", "--refer_data_root", toy, "--resume", "checkpoints/model_best_toy.pth",
                      "--split", "val", "--workers", 0, "--results", f"{name}.json", *flags, cwd=folder,
                      processes=processes)
    assert done.returncode == 0, done.stderr
    return {"printed": done.stdout, **json.loads((folder / f"{name}.json").read_text())}


def test_training_logs_and_saves(trained, toy):
    (entry,) = [json.loads(line) for line in (trained / "models/toy/log.jsonl").read_text().splitlines()]
    assert {"epoch", "lr", "loss", "val", "images_per_second", "peak_memory_mib"} <= entry.keys()
    assert entry["val"].keys() == {"mIoU", "oIoU", "boundary_IoU", "precision"}
    saved = torch.load(trained / "checkpoints/model_last_toy.pth", weights_only=True)
    assert {"model", "ema", "optimizer", "lr_scheduler", "epoch", "args", "config", "tokenizer"} <= saved.keys()
    assert type(saved["args"]) is dict and saved["epoch"] == 0
    assert (trained / "checkpoints/model_best_toy.pth").is_file()


def test_training_prints_its_recipe_and_the_time_left(trained):
    printed = (trained / "printed.txt").read_text()
    recipe = " ".join(printed[printed.index("recipe: "):].split())
    assert printed.count("recipe: ") == 1
    assert recipe.startswith("recipe: model 'rmsin', swin_type 'nano', window12 False")
    assert ", epochs 1, passes 1, batch_size 8, lr 0.0003, warmup_iters 100, weight_decay 0.01, amsgrad False" in recipe
    assert ", amp 'off', accumulate 1, ema 0.5, masked_pass False " in recipe
    assert re.search(r"^epoch 0 \[4/4\] loss \S+ lr \S+ \S+ images/s, 0 s of training left$", printed, re.MULTILINE)


@pytest.mark.slow
def test_a_network_that_marks_no_pixel_is_warned_of_in_training_and_testing(trained, toy, tmp_path):
    checkpoint = read_checkpoint(trained / "checkpoints/model_best_toy.pth")
    checkpoint["model"]["decoder.head.bias"] = torch.tensor([50.0, -50.0])
    save_checkpoint(tmp_path / "blind.pth", {key: checkpoint[key] for key in ("model", "config", "tokenizer")})
    tested = run_script("test.py", "--refer_data_root", toy, "--resume", "blind.pth", "--split", "val", "--workers", 0,
                        cwd=tmp_path)
    trained_on = run_script("train.py", "--refer_data_root", toy, "--resume", "blind.pth", "--epochs", 1, "--lr", 1e-9,
                            "--batch-size", 8, "--workers", 0, cwd=tmp_path)
    for done in (tested, trained_on):
        assert done.returncode == 0, done.stderr
        assert "WARNING: all 4 predictions are empty: the network marks no pixel as the object. It has not learnt " \
               "enough yet (more --epochs, a higher --lr)" in done.stdout


def test_training_leaves_a_record_of_the_run(trained):
    (start,) = json.loads((trained / "models/toy/run.json").read_text())["starts"]
    assert "train.py" in start["command"] and "--model_id toy" in start["command"] and start["processes"] == 1
    (entry,) = [json.loads(line) for line in (trained / "models/toy/log.jsonl").read_text().splitlines()]
    board = EventAccumulator(str(trained / "models/toy/tensorboard")).Reload()
    assert [event.value for event in board.Scalars("val/mIoU")] == pytest.approx([entry["val"]["mIoU"]])
    assert len(board.Tags()["images"]) == 4
    assert Image.open(trained / "models/toy/curves.png").format == "PNG"


@pytest.mark.slow
def test_the_logs_number_is_the_final_number(trained, toy):
    (entry,) = [json.loads(line) for line in (trained / "models/toy/log.jsonl").read_text().splitlines()]
    results = evaluate(trained, toy, "again", "--batch-size", 8)
    assert results["mIoU"] == entry["val"]["mIoU"] and results["oIoU"] == entry["val"]["oIoU"]
    assert "Mean IoU is %.2f" % results["mIoU"] in results["printed"]
    averaged = evaluate(trained, toy, "averaged", "--batch-size", 8, "--ema")
    assert averaged["oIoU"] == entry["val_ema"]["oIoU"] and averaged["mIoU"] == entry["val_ema"]["mIoU"]
    assert averaged["samples"] != results["samples"]
    best = read_checkpoint(trained / "checkpoints/model_best_toy.pth")["progress"]["best_oIoU"]
    assert best == averaged["oIoU"]   # the average chooses the best epoch


@pytest.mark.slow
def test_every_sample_once_at_any_number_of_processes_and_batch_size(trained, toy):
    reference = evaluate(trained, toy, "one", "--batch-size", 1)
    assert len(reference["samples"]) == reference["sentences"] == 4 and reference["images"] == 2
    for processes, batch in [(1, 8), (2, 8), (3, 1)]:
        other = evaluate(trained, toy, f"{processes}-{batch}", "--batch-size", batch, processes=processes)
        assert other["samples"] == reference["samples"], (processes, batch)
        assert other["mIoU"] == reference["mIoU"]


@pytest.mark.slow
def test_shuffled_sentences_change_what_is_read_and_nothing_else(trained, toy):
    true, shuffled = evaluate(trained, toy, "true"), evaluate(trained, toy, "shuffled", "--shuffle_sentences")
    assert [s["sent_id"] for s in true["samples"]] == [s["sent_id"] for s in shuffled["samples"]]
    assert sorted(s["sentence"] for s in true["samples"]) == sorted(s["sentence"] for s in shuffled["samples"])
    assert [s["sentence"] for s in true["samples"]] != [s["sentence"] for s in shuffled["samples"]]


@pytest.mark.slow
def test_results_break_down_and_predictions_score_the_same(trained, toy):
    results = evaluate(trained, toy, "all", "--eval_ori_size", "--save_predictions", "masks", "--prediction_pngs",
                       "--markdown", "--report", "report", "--report_samples", 3, "--report_attention",
                       "--compare_published", processes=2)
    assert "no published figures of toy, split val, are in docs/reference" in results["printed"]
    assert "published" not in results
    assert "| rmsin |" in results["printed"] and "original size" in results["printed"]
    assert results["original_size"]["mIoU"] == results["mIoU"]   # the toy set's images have the network's size
    for rows in results["breakdowns"].values():
        assert sum(row["samples"] for row in rows) == 4
    assert len(list((trained / "masks").glob("*.png"))) == 4
    again = run_script("tools/score_predictions.py", "--predictions", "masks", "--refer_data_root", toy, "--split",
                       "val", "--results", "scored.json", cwd=trained)
    assert again.returncode == 0, again.stderr
    assert json.loads((trained / "scored.json").read_text())["samples"] == results["samples"]
    page = (trained / "report/index.html").read_text()
    data = json.loads(page.split('type="application/json"')[1].split(">", 1)[1].split("</script>")[0])
    assert "<title>RMSIN on the toy set, val</title>" in page
    assert data["mIoU"] == results["mIoU"] and len(data["gallery"]) == 3
    assert next(word["word"] for word in data["gallery"][0]["attention"]) == "[CLS]"


def test_results_say_what_they_depend_on(trained, toy):
    results = evaluate(trained, toy, "provenance")
    checkpoint = trained / "checkpoints/model_best_toy.pth"
    assert results["checkpoint"]["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert results["annotations"] == {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in (
        toy / "rrsisd/refs(unc).p", toy / "rrsisd/instances.json")}
    assert results["versions"]["torch"] == torch.__version__.split("+")[0] and results["device"].startswith("cpu")
    assert results["flags"]["split"] == "val" and results["flags"]["dataset"] == "rrsisd"
    assert results["dataset"] == "toy"   # what it scores says nothing of RRSIS-D


@pytest.mark.slow
def test_deterministic_runs_are_equal_bit_for_bit_and_a_record_is_all_that_a_second_one_needs(toy, tmp_path):
    logs = []
    flags = [*training_flags(toy), "--epochs", 2, "--batch-size", 8, "--model_id", "d", "--deterministic",
             "--random_box_share", 0.5]
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        done = run_script("train.py", *flags, cwd=tmp_path / folder)
        assert done.returncode == 0, done.stderr
        entries = map(json.loads, (tmp_path / folder / "models/d/log.jsonl").read_text().splitlines())
        timed = ("train_seconds", "images_per_second", "peak_memory_mib")
        logs.append([{key: value for key, value in entry.items() if key not in timed} for entry in entries])
        flags = ["--config", tmp_path / "first/models/d/run.json"]
    assert len(logs[0]) == 2 and logs[0] == logs[1]


@pytest.mark.slow
def test_two_processes_train_together(toy, tmp_path):
    done = run_script("train.py", *training_flags(toy), "--epochs", 2, "--batch-size", 4, "--ema", 0.5,
                      "--model_id", "two", cwd=tmp_path, processes=2)
    assert done.returncode == 0, done.stderr
    assert "BatchNorm is not synchronised" in done.stdout and "2 process(es) on cpu" in done.stdout
    assert done.stdout.count("finished:") == 1   # one process speaks
    assert len((tmp_path / "models/two/log.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_training_goes_on_from_a_checkpoint(trained, toy, tmp_path):
    command = ["train.py", *training_flags(toy), "--epochs", 2, "--batch-size", 8, "--model_id", "on", "--resume",
               trained / "checkpoints/model_last_toy.pth"]
    assert_refused(run_script(*command, cwd=tmp_path), "epochs was 1, is 2", "--allow_changed_flags")
    done = run_script(*command, "--allow_changed_flags", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "going on with epoch 1, iteration 0" in done.stdout
    assert [json.loads(line)["epoch"] for line in (tmp_path / "models/on/log.jsonl").read_text().splitlines()] == [1]


@pytest.mark.slow
def test_a_signal_saves_and_says_try_again(toy, tmp_path):
    for beginning in ("a new run begins", "resuming from"):
        training = Forked("train.py", *training_flags(toy), "--epochs", 500, "--batch-size", 8, "--print-freq", 1,
                          "--model_id", "s", "--resume", "auto", cwd=tmp_path)
        training.wait_for("images/s")
        training.processes[0].terminate()
        done = training.finish()
        assert done.returncode == EXIT_REQUEUE, done.stderr
        assert beginning in done.stdout and "stopped by a signal, saved" in done.stdout
        assert torch.load(tmp_path / "checkpoints/model_last_s.pth", weights_only=True)["progress"]["step"] >= 0


@pytest.mark.parametrize(("script", "flags", "parts"), [
    ("train.py", "--dataset rrsisd --model_id RMSIN --epochs 40 --img_size 480",
     ["refer/data", "refer/data/README.md"]),
    ("test.py", "--swin_type base --dataset rrsisd --resume ./your_checkpoints_path --split val --workers 4 "
     "--window12 --img_size 480", ["checkpoint your_checkpoints_path does not exist", "docs/deployment.md"]),
    ("train.py", "--model lavt --dataset refcoco --model_id refcoco --batch-size 3 --lr 0.00005 --wd 1e-2 "
     "--swin_type base --pretrained_swin_weights ./pretrained_weights/swin_base_patch4_window12_384_22k.pth "
     "--epochs 40 --img_size 480", ["refer/data", "refer/data/README.md"]),
    ("test.py", "--model lavt --swin_type base --dataset refcoco --split val --resume ./checkpoints/refcoco.pth "
     "--workers 4 --ddp_trained_weights --window12 --img_size 480", ["checkpoints/refcoco.pth does not exist"]),
])
def test_published_commands_stop_for_want_of_files(script, flags, parts, tmp_path):
    assert_refused(run_script(script, *flags.split(), cwd=tmp_path), *parts)


@pytest.mark.slow
def test_missing_weights_are_named_with_their_source(toy, tmp_path):
    assert_refused(run_script("train.py", "--refer_data_root", toy, cwd=tmp_path),
            "bert-base-uncased", "pretrained_weights/README.md")
    assert_refused(run_script("train.py", "--refer_data_root", toy, "--ck_bert", toy / "bert", "--bert_tokenizer",
                       toy / "bert", cwd=tmp_path),
            "swin_base_patch4_window12_384_22k.pth does not exist", "pretrained_weights/README.md")


@pytest.mark.slow
def test_mistakes_in_evaluation(trained, toy, tmp_path):
    checkpoint = trained / "checkpoints/model_best_toy.pth"

    def test(*flags):
        return run_script("test.py", "--resume", checkpoint, "--workers", 1, *flags, cwd=tmp_path)

    assert_refused(run_script("test.py", cwd=tmp_path), "--resume FILE is needed")
    assert_refused(test("--refer_data_root", tmp_path), f"{tmp_path}/rrsisd")
    assert_refused(test("--refer_data_root", toy, "--split", "testA"), "testA", "val")
    assert_refused(test("--refer_data_root", toy, "--model", "lavt"), "--model lavt was given", "trained with rmsin")
    whole = read_checkpoint(checkpoint)
    save_checkpoint(tmp_path / "plain.pth", {key: whole[key] for key in ("model", "config", "tokenizer")})
    assert_refused(test("--resume", "plain.pth", "--ema"), "--ema: checkpoint plain.pth holds no averaged weights")
    (tmp_path / "file").write_text("[3]")
    for flag, path in [("--results", "/proc/none/r.json"), ("--report", "file"), ("--save_predictions", "file/x")]:
        assert_refused(test("--refer_data_root", toy, flag, path), "cannot be written")
    assert_refused(test("--refer_data_root", tmp_path / "not looked at", "--results", tmp_path), "is a folder")
    assert_refused(test("--refer_data_root", toy, "--report", "r", "--probe", "file"),
            "--probe file: must be an object with conditions, words")

    broken = tmp_path / "broken"
    shutil.copytree(toy, broken)
    refs = pickle.loads((broken / "rrsisd/refs(unc).p").read_bytes())
    ref = next(ref for ref in refs if ref["split"] == "val")
    (broken / "images/rrsisd/JPEGImages" / ref["file_name"]).unlink()
    assert_refused(test("--refer_data_root", broken, "--split", "val", "--report", "r", "--save_predictions", "p"),
                   f"ref {ref['ref_id']}: its image", "is missing")
    assert not list(tmp_path.glob("[rp]"))   # no empty folders


@pytest.mark.slow
def test_published_figures_beside_ones_own(trained, toy, tmp_path):
    """A copy without the toy set's mark passes for RRSIS-D, of another size."""
    copy = tmp_path / "copy"
    shutil.copytree(toy, copy, ignore=shutil.ignore_patterns(MARKER))
    results = evaluate(trained, copy, "of_copy", "--compare_published", "--latex", "--report", "beside")
    assert "RMSIN (Swin-B, 2024), published (1) & 74.66 & 68.22" in results["printed"]
    assert "RRSIS-D's val split has 1,740 refs, this one 4" in results["printed"]
    assert results["published"][0]["figures"]["mIoU"] == 65.1
    assert "Lsan2401/RMSIN/issues/11" in (trained / "beside/index.html").read_text()


class PlainAttention(torch.nn.Module):
    """A fusion of one's own without attention weights to show."""

    def __init__(self, dim: int, text_dim: int):
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(dim, 1, kdim=text_dim, vdim=text_dim, batch_first=True)

    def forward(self, x: torch.Tensor, words: torch.Tensor, word_mask: torch.Tensor) -> torch.Tensor:
        return self.attention(x, words, words, key_padding_mask=word_mask == 0, need_weights=False)[0]


@pytest.mark.slow
def test_a_report_of_a_fusion_without_attention_weights_has_no_maps_and_says_so(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lib.plain_attention", SimpleNamespace(PlainAttention=PlainAttention))
    monkeypatch.setitem(PARTS["fusion"], "pwam", Part("plain_attention:PlainAttention"))
    save_nano_checkpoint(tmp_path / "own.pth", toy)
    done = run_script("test.py", "--refer_data_root", toy, "--resume", "own.pth", "--split", "val", "--workers", 0,
                      "--report", "report", "--report_attention", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--report_attention: the network's fusion has no attention_weights" in done.stdout
    assert '"attention":[]' in (tmp_path / "report/index.html").read_text()


def test_an_empty_mask_is_counted_and_not_fatal(trained, toy, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(toy, copy)
    refs = pickle.loads((copy / "rrsisd/refs(unc).p").read_bytes())
    ref = next(ref for ref in refs if ref["split"] == "val")
    instances = json.loads((copy / "rrsisd/instances.json").read_text())
    for annotation in instances["annotations"]:
        if annotation["id"] == ref["ann_id"]:
            annotation["segmentation"] = []
    (copy / "rrsisd/instances.json").write_text(json.dumps(instances))
    shutil.copytree(trained, tmp_path / "run")
    results = evaluate(tmp_path / "run", copy, "empty")
    assert results["empty_masks"] == 1 and "1 of 4 samples have an empty mask" in results["printed"]
    assert next(s for s in results["samples"] if s["ref_id"] == ref["ref_id"])["intersection"] == 0
