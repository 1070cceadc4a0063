"""The record of a run in models/ID: run.json, log.jsonl, curves.png, and TensorBoard and Weights & Biases if asked."""
import io
import json
import shlex
import subprocess
import sys
from argparse import Namespace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from args import get_parser
from data import EvalSet
from lib.training import run_record
from lib.training.generators import generator_states
from lib.training.resume import DECISIVE
from lib.training.run_record import (
    RunRecord,
    append_json_line,
    draw_curves,
    git_state,
    pick_samples,
    read_log,
    scalars,
)
from utils import UserError

CPU = torch.device("cpu")
FLAGS = Namespace(model="rmsin", lr=1e-3, amp="off")


class AllTrue(torch.nn.Module):
    """A network that sees the object everywhere."""

    def forward(self, image, token_ids, token_mask):
        return torch.stack([torch.zeros_like(image[:, 0]), torch.ones_like(image[:, 0])], dim=1)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "models" / "m"


@pytest.fixture(scope="module")
def val_set(refer, tokenizer) -> EvalSet:
    return EvalSet(refer, "val", tokenizer, 64)


def entry(epoch: int, loss: float = 1.0) -> dict:
    return {"epoch": epoch, "lr": 1e-3 / (epoch + 1), "loss": loss, "images_per_second": 9.0,
            "val": {"mIoU": 10.0 + epoch, "oIoU": 20.0 + epoch, "precision": {"0.5": 5.0, "0.9": 1.0}}}


def record_epochs(folder: Path, *epochs: int, goes_on: bool = False, val_set=(), **flags: bool) -> None:
    """A start of the run that does these epochs."""
    record = RunRecord(folder, FLAGS, CPU, flags.get("tensorboard", False), flags.get("wandb", False))
    with record.begin(goes_on, epochs[0] if epochs else 0, val_set):
        for epoch in epochs:
            record.epoch(entry(epoch), AllTrue())


def starts(folder: Path) -> list[dict]:
    return json.loads((folder / "run.json").read_text())["starts"]


def test_run_json_says_how_the_run_came_about(folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--model_id", "two words"])
    record_epochs(folder)
    (start,) = starts(folder)
    assert shlex.split(start["command"]) == [sys.executable, "train.py", "--model_id", "two words"]
    assert start["flags"] == vars(FLAGS)
    assert datetime.fromisoformat(start["time"]).tzinfo
    assert {"versions", "device", "processes", "host", "working_directory", "git"} <= start.keys()
    assert start["working_directory"] == str(Path.cwd())


def test_a_run_that_goes_on_adds_a_start(folder):
    record_epochs(folder, 0)
    record_epochs(folder, 1, goes_on=True)
    assert len(starts(folder)) == 2
    assert [line["epoch"] for line in read_log(folder / "log.jsonl")] == [0, 1]


def test_a_new_run_sets_aside_what_an_earlier_one_left(folder):
    record_epochs(folder, 0, tensorboard=True)
    (before,) = starts(folder)
    record_epochs(folder)
    assert len(starts(folder)) == 1 and not (folder / "log.jsonl").exists() and not (folder / "curves.png").exists()
    (kept,) = folder.glob("run.*.json")
    assert json.loads(kept.read_text())["starts"] == [before]
    assert {path.name.split(".")[0] for path in folder.iterdir()} == {"run", "log", "curves", "tensorboard"}


def test_a_damaged_run_json_is_set_aside(folder, capsys):
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"starts": [')
    record_epochs(folder, goes_on=True)
    assert len(starts(folder)) == 1 and len(list(folder.glob("run.*.json"))) == 1
    assert "run.json is damaged" in capsys.readouterr().out


def test_git_state_is_that_of_the_code(tmp_path, monkeypatch):
    def git(*words: str) -> str:
        return subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path / "code",
                              check=True, capture_output=True, text=True).stdout.strip()

    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):   # as hooks have them
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "code").mkdir()
    (tmp_path / "code/a.py").write_text("1")
    assert git_state(tmp_path / "code") is None
    git("init", "-b", "trunk")
    git("add", ".")
    git("commit", "-m", "a")
    commit = git("rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    (tmp_path / "code/output").write_text("not tracked")
    assert git_state(tmp_path / "code") == {"commit": commit, "branch": "trunk", "modified": False}
    (tmp_path / "code/a.py").write_text("2")
    assert git_state(tmp_path / "code")["modified"]
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path / "code") is None


def test_curves_are_a_picture_of_the_log(folder):
    record_epochs(folder, 0)
    first = np.asarray(Image.open(folder / "curves.png"))
    record_epochs(folder, 1, goes_on=True)
    second = np.asarray(Image.open(folder / "curves.png"))
    assert first.shape == second.shape and (first != second).any()
    assert not list(folder.glob(".*.tmp*"))


def test_averaged_weights_have_curves_of_their_own(tmp_path):
    plain, averaged = entry(0), {**entry(1), "val_ema": {"mIoU": 31.0, "oIoU": 41.0}}
    assert set(scalars(averaged)) - set(scalars(plain)) == {"val_ema/mIoU", "val_ema/oIoU"}
    draw_curves([plain, entry(1)], tmp_path / "plain.png")
    draw_curves([plain, averaged], tmp_path / "averaged.png")   # as after --ema was switched on
    assert (tmp_path / "plain.png").read_bytes() != (tmp_path / "averaged.png").read_bytes()


def test_a_line_that_was_cut_off_costs_only_itself(folder):
    record_epochs(folder, 0, 1)
    with (folder / "log.jsonl").open("a") as file:
        file.write('{"epoch": 2, "lr": 0.')
    record_epochs(folder, 2, 3, goes_on=True)
    assert [line["epoch"] for line in read_log(folder / "log.jsonl")] == [0, 1, 2, 3]
    assert Image.open(folder / "curves.png").format == "PNG"


def test_of_an_epoch_done_again_the_last_entry_counts(tmp_path):
    for line in (entry(0), entry(1, loss=3.0), entry(1, loss=2.0)):
        append_json_line(tmp_path / "log.jsonl", line)
    assert [line["loss"] for line in read_log(tmp_path / "log.jsonl")] == [1.0, 2.0]


def test_a_picture_that_cannot_be_written_does_not_stop_the_run(folder, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_record.os, "replace", lambda old, new: full() if "curves" in str(new) else
                        Path(old).rename(new))
    record_epochs(folder, 0, 1)
    said = capsys.readouterr().out
    assert said.count("curves.png: [Errno 28] No space left on device") == said.count("\n") == 2
    assert len(read_log(folder / "log.jsonl")) == 2 and not list(folder.glob("curves*"))


def test_a_failed_picture_leaves_the_one_before(tmp_path):
    draw_curves([entry(0)], tmp_path / "curves.png")
    before = (tmp_path / "curves.png").read_bytes()
    with pytest.raises(KeyError):
        draw_curves([{"epoch": 0}], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes() == before


def board(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "tensors": 0}).Reload()


def test_tensorboard_gets_figures_and_pictures_by_epoch(folder, val_set):
    record_epochs(folder, 0, 1, tensorboard=True, val_set=val_set)
    seen = board(folder)
    assert set(seen.Tags()["scalars"]) == {"train/loss", "train/lr", "train/images_per_second", "val/mIoU", "val/oIoU",
                                           "val/precision@0.5", "val/precision@0.9"}
    assert [(event.step, event.value) for event in seen.Scalars("val/oIoU")] == [(0, 20.0), (1, 21.0)]
    assert seen.Tags()["images"] == ["val/1", "val/2", "val/3", "val/4"]
    picture = np.asarray(Image.open(io.BytesIO(seen.Images("val/1")[1].encoded_image_string)))
    assert picture.shape == (64, 128, 3)
    truth, image = val_set[0]["target"].bool().numpy(), val_set[0]["image"].permute(1, 2, 0).numpy()
    assert (picture[:, :64][~truth] == image[~truth]).all() and (picture[:, :64][truth] != image[truth]).any()
    assert (picture[:, 64:] != image).any(axis=2).mean() > 0.9   # predicted everywhere
    text = seen.Tensors("val/1/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text == val_set.describe(0)["sentence"]


def test_an_epoch_done_again_replaces_the_first_in_tensorboard(folder, val_set):
    record_epochs(folder, 0, 1, tensorboard=True, val_set=val_set)
    record_epochs(folder, 1, 2, goes_on=True, tensorboard=True, val_set=val_set)
    assert [event.step for event in board(folder).Scalars("train/loss")] == [0, 1, 2]


def test_tensorboard_that_fails_does_not_stop_the_run(folder, val_set, monkeypatch, capsys):
    def lost(*_: object, **__: object) -> None:
        raise OSError("lost")

    record = RunRecord(folder, FLAGS, CPU, True, False)
    with record.begin(False, 0, val_set):
        monkeypatch.setattr(record.writer, "add_scalar", lost)
        record.epoch(entry(0), AllTrue())
    assert capsys.readouterr().out == "going on without this epoch in TensorBoard: lost\n"


def test_samples_are_spread_over_the_split_and_readable():
    class Ten(list):
        def describe(self, index: int) -> dict:
            return {"sentence": f"sentence {index}"}

    ten = Ten({"image": index} for index in range(10))
    assert [sample["image"] for sample, _ in pick_samples(ten, 4)] == [0, 3, 6, 9]
    ten[3] = {"problem": "missing"}
    assert [sentence for _, sentence in pick_samples(ten, 4)] == ["sentence 0", "sentence 6", "sentence 9"]
    assert len(pick_samples(Ten(ten[:2]), 4)) == 2 and pick_samples(Ten(), 4) == []


def test_recording_draws_no_random_numbers_and_leaves_the_model_training(folder, val_set):
    before, model = generator_states(CPU), AllTrue().train()
    record = RunRecord(folder, FLAGS, CPU, True, False)
    with record.begin(False, 0, val_set):
        record.epoch(entry(0), model)
    after = generator_states(CPU)
    assert torch.equal(before.pop("torch"), after.pop("torch")) and before == after and model.training


@pytest.fixture
def wandb(monkeypatch) -> list:
    """A stand-in for the package; what was called of it."""
    calls: list = []

    def init(**settings: object) -> SimpleNamespace:
        calls.append(("init", settings))
        return SimpleNamespace(log=lambda entry, step: calls.append(("log", entry, step)),
                               finish=lambda exit_code: calls.append(("finish", exit_code)))

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    return calls


def test_wandb_gets_flags_and_entries_and_keeps_its_id(folder, wandb):
    record_epochs(folder, 0, wandb=True)
    (_, settings), logged, finished = wandb
    assert logged == ("log", entry(0), 0) and finished == ("finish", 0)
    assert settings == {"project": "referring-segmentation", "name": "m", "config": vars(FLAGS), "dir": str(folder),
                        "resume": "allow", "id": json.loads((folder / "run.json").read_text())["wandb_id"]}
    record_epochs(folder, 1, goes_on=True, wandb=True)
    record_epochs(folder, 0, wandb=True)
    ids = [call[1]["id"] for call in wandb if call[0] == "init"]
    assert ids[0] == ids[1] != ids[2]


def test_wandb_that_does_not_begin_is_a_user_error(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: [][0]))
    with pytest.raises(UserError, match=r"^--wandb: .*wandb login"):
        record_epochs(folder, wandb=True)


def test_all_is_closed_when_the_run_fails(folder, wandb, val_set):
    record = RunRecord(folder, FLAGS, CPU, True, True)
    with pytest.raises(RuntimeError, match=r"^stop$"), record.begin(False, 0, val_set):
        raise RuntimeError("stop")
    assert wandb[-1] == ("finish", 1) and record.writer.file_writer is None


@pytest.mark.parametrize(("flag", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_said_at_once(folder, monkeypatch, flag, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"^--{flag} needs .*pip install {flag}, or leave the flag out$"):
        RunRecord(folder, FLAGS, CPU, flag == "tensorboard", flag == "wandb")
    assert not folder.exists()
    RunRecord(folder, FLAGS, CPU, False, False)   # and never imported without the flag


def test_only_the_first_process_writes(folder, monkeypatch, val_set):
    monkeypatch.setattr(run_record, "rank", lambda: 1)
    monkeypatch.setitem(sys.modules, "wandb", None)
    record_epochs(folder, 0, tensorboard=True, wandb=True, val_set=val_set)
    assert not folder.exists()


def test_its_flags_do_not_change_the_result():
    assert {"tensorboard", "wandb"}.isdisjoint(DECISIVE) and not get_parser().parse_args([]).tensorboard
