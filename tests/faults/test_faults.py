"""A fault in one of several processes: none hangs, the cause is printed last, and the run can be resumed."""
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

import test
import train
from args import get_parser
from bert import load_tokenizer
from data import EvalSet, TrainSet, eval_loader, train_loader
from distributed import EXIT_REQUEUE
from lib.checkpoint import read_checkpoint
from lib.training.resume import choose_start, set_earlier_run_aside
from refer.refer import REFER
from tests.launch import Forked, nano_flags, processes_of, start_training
from utils import UserError

STEPS = 4   # batches of 8 in an epoch of the toy set


def start(toy: Path, folder: Path, *flags: object, launcher: tuple = (), **environment: str) -> subprocess.Popen:
    """Starts training by two processes with a fault; their output goes to FOLDER/said.txt."""
    return start_training(folder, toy, "--epochs", 3, "--model_id", "f", *flags, processes=2, launcher=launcher,
                          NARROW="1", **environment)


def fork(toy: Path, folder: Path, *flags: object, **environment: str) -> Forked:
    """What `start` does, without a launcher: the two processes are forked."""
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"NARROW": "1", **environment}.items():
            patch.setenv(name, value)
        return Forked("tests/faults/instrumented_train.py", *nano_flags(
            toy, "--batch-size", 4, "--print-freq", 1, "--epochs", 3, "--model_id", "f", *flags), cwd=folder,
            processes=2)


def run(toy: Path, folder: Path, *flags: object, **environment: str) -> str:
    """What the two processes of `fork` print until they end."""
    done = fork(toy, folder, *flags, **environment).finish()
    return done.stdout + done.stderr


def finish(process: subprocess.Popen, folder: Path) -> str:
    """Waits for the end of all processes of the run and returns their output."""
    process.wait(timeout=120)
    end = time.monotonic() + 5
    while left := processes_of(folder):
        assert time.monotonic() < end, f"processes are left over: {left}"
        time.sleep(0.1)
    return (folder / "said.txt").read_text()


@pytest.mark.slow
def test_an_exception_on_one_process_ends_all_and_is_said_last(toy, tmp_path):
    process = start(toy, tmp_path, FAULT="raise:1:3")
    said = finish(process, tmp_path)
    assert process.returncode == 1
    assert said.rstrip().rstrip("=").rstrip().endswith("RuntimeError: a fault built in")
    assert "Root Cause" in said and "Connection closed" not in said   # the others add nothing


@pytest.mark.slow
def test_a_mistake_of_the_user_is_one_line_and_said_last(toy, tmp_path):
    said = finish(start(toy, tmp_path, "--refer_data_root", "nowhere"), tmp_path)
    last = said.rstrip().rstrip("=").rstrip().splitlines()[-1]
    assert re.match(r" *traceback : train.py: .*nowhere", last), said


@pytest.mark.slow
def test_nan_on_one_process_stops_both_at_the_same_step(toy, tmp_path):
    said = run(toy, tmp_path, "--save_every", 1, FAULT="nan:1:3")
    assert re.search(r"train.py: loss or gradient is not finite in epoch 0, iteration 2, on refs \d+(, \d+){7};", said)
    checkpoint = read_checkpoint(tmp_path / "checkpoints/model_last_f.pth")
    assert checkpoint["progress"]["step"] == 2 and all(torch.isfinite(t).all() for t in checkpoint["model"].values())


@pytest.mark.slow
def test_a_killed_process_is_started_again_and_the_run_ends_in_the_same_bits(toy, tmp_path):
    """Of three runs by two processes, one is killed and restarted by torchrun, one stopped by a signal and resumed."""
    whole, killed, stopped = (tmp_path / name for name in ("whole", "killed", "stopped"))
    flags = ("--save_every", 1, "--deterministic", "--fusion_drop", 0.1)
    assert "finished:" in run(toy, whole, *flags, HASHES="hashes", LOSSES="losses")

    said = finish(start(toy, killed, *flags, launcher=("--max-restarts", 1), FAULT="kill:1:6", HASHES="hashes"), killed)
    assert "started again by the launcher" in said and "going on with epoch 1, iteration 1" in said

    both = fork(toy, stopped, *flags, "--workers", 1, LOSSES="losses", HASHES="hashes")
    both.wait_for("epoch 1 [2/4]")
    os.kill(both.processes[1].pid, signal.SIGTERM)   # the other one is told by this one
    done = both.finish()
    said = done.stdout + done.stderr
    assert done.returncode == EXIT_REQUEUE and "stopped by a signal, saved" in said
    logged = said.count("\nepoch ")
    progress = read_checkpoint(stopped / "checkpoints/model_last_f.pth")["progress"]
    assert progress["epoch"] * STEPS + progress["step"] >= logged   # at most the step at hand is lost
    assert "finished:" in run(toy, stopped, *flags, "--workers", 1, "--resume", "auto", LOSSES="losses",
                              HASHES="hashes")

    hashes = {line.split()[1] for folder in (whole, killed, stopped)
              for line in (folder / "hashes").read_text().splitlines()}
    assert len(hashes) == 1   # on both processes of all three runs
    assert sorted(losses(whole)) == sorted(losses(stopped))


def losses(folder: Path) -> list[tuple[str, str]]:
    """(process, loss) of every step of a run in one or several parts."""
    return [(line.split()[0], line.split()[2]) for line in (folder / "losses").read_text().splitlines()]


@pytest.mark.slow
def test_a_process_that_cannot_agree_leaves(toy, tmp_path):
    """One process hangs and the other is told to stop, which does not wait for it forever."""
    both = fork(toy, tmp_path, FAULT="hang:1:3", PATIENCE="3")
    both.wait_for("epoch 0 [2/4]")
    time.sleep(1)
    os.kill(both.processes[0].pid, signal.SIGTERM)
    both.wait_for("process 0 could not agree with the others on stopping within 3.0 s")
    both.processes[1].kill()
    assert both.finish().returncode == -signal.SIGKILL and both.processes[0].exitcode == 1


@pytest.mark.parametrize("script", [train, test], ids=["train", "test"])
def test_the_refs_are_read_by_a_process_that_is_forked_before_there_are_threads(toy, monkeypatch, script):
    """Connecting starts some, and the child would find a lock that one of them held locked for ever."""
    done: list[str] = []
    fork = os.fork
    monkeypatch.setattr(os, "fork", lambda: done.append("fork") or fork())
    monkeypatch.setattr("distributed.init_processes", lambda *_: done.append("connect") or 1 / 0)
    flags = ["--resume", "a.pth"] if script is test else []
    with pytest.raises(ZeroDivisionError):
        script.run(get_parser().parse_args([*flags, *nano_flags(toy)]))
    assert done == ["fork", "connect"]


@pytest.fixture
def with_bad_images(toy, tmp_path) -> tuple[REFER, dict]:
    """A toy set in which one training and one validation image are broken; the index and the broken ones' refs."""
    shutil.copytree(toy, tmp_path / "data")
    refer = REFER(tmp_path / "data", "rrsisd")
    broken = {}
    for split, damage in (("train", lambda path: path.unlink()), ("val", lambda path: path.write_bytes(b"GIF89a"))):
        ref = refer.loadRefs(refer.getRefIds(split=split))[1]
        damage(Path(refer.image_path(ref)))
        broken[split] = [other["ref_id"] for other in refer.imgToRefs[ref["image_id"]]]
    return refer, broken


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_images_are_replaced_in_training_and_left_out_of_evaluation(with_bad_images, toy, workers, capfd):
    refer, broken = with_bad_images
    train = TrainSet(refer, "train", load_tokenizer(str(toy / "bert")), 32, seed=1, skip_bad_images=True)
    loader = train_loader(train, 4, workers, False, 0, 1)
    for _ in range(2):   # problems are counted anew in each pass
        seen = [train.refs[index]["ref_id"] for batch in loader for index in batch["index"].tolist()]
        assert len(seen) == len(train) and not set(seen) & set(broken["train"])   # no batch is smaller
        assert len(loader.problems) == len(broken["train"]) and "is missing" in loader.problems[0]

    val = EvalSet(refer, "val", load_tokenizer(str(toy / "bert")), 32, skip_bad_images=True)
    loader = eval_loader(val, 1, workers, False, 0, 1)
    seen = [val.describe(index)["ref_id"] for batch in loader for index in batch["index"].tolist()]
    assert len(seen) + len(loader.problems) == len(val) and not set(seen) & set(broken["val"])
    assert "cannot be read" in loader.problems[0] and f"skipped: {loader.problems[0]}" in capfd.readouterr().out


def test_a_folder_without_images_is_not_skipped_image_by_image(with_bad_images, toy):
    refer, _ = with_bad_images
    for path in Path(refer.IMAGE_DIR).iterdir():
        path.unlink()
    with pytest.raises(UserError, match="is missing"):
        TrainSet(refer, "train", load_tokenizer(str(toy / "bert")), 32, seed=1, skip_bad_images=True)[0, 0]


def test_a_new_run_sets_an_earlier_one_of_its_name_aside(tmp_path, capsys):
    last, other = tmp_path / "model_last_m.pth", tmp_path / "other.pth"
    last.write_bytes(b"a day's work")
    set_earlier_run_aside("auto", tmp_path, "m")
    set_earlier_run_aside(str(last), tmp_path, "m")
    assert last.is_file()
    set_earlier_run_aside(str(other), tmp_path, "m")
    (kept,) = tmp_path.glob("model_last_m.*.pth")
    assert kept.read_bytes() == b"a day's work" and not last.exists()
    assert f"it is renamed to {kept}" in capsys.readouterr().out


def test_processes_must_find_the_same_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("lib.training.resume.gather_objects", lambda found: [found, {"epoch": 3}])
    with pytest.raises(UserError, match=r"different checkpoints in .*: it must be a folder that all machines share"):
        choose_start("auto", tmp_path, "m", False)
