"""Logs that break, signals, full memory and a small part of tools/fuzz.py: work is kept, the message is one line."""
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from data.loader import log_problems
from distributed import user_errors
from lib.checkpoint import read_checkpoint
from lib.training import epoch
from tests.launch import ROOT
from tests.training.test_resume import a_folder_and_signals_of_its_own, arguments  # noqa: F401
from tools.fuzz import AREAS, fuzz
from utils import MachineError, UserError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("narrow_nano")]

LOGGING = ("import sys; sys.path.insert(0, sys.argv[1])\n"
           "from distributed import user_errors; from utils import log\n"
           "with user_errors('p.py'):\n"
           "    for number in range(2000): log(f'line {number} \\udc80')\n"
           "    open('done', 'w').write('saved')\n")


@pytest.mark.parametrize("stdout", ["a pipe that nobody reads", "/dev/full", "closed"])
def test_a_log_that_cannot_be_written_ends_no_run(tmp_path, stdout):
    where = {"closed": ">&-", "/dev/full": ">/dev/full"}.get(stdout, "")
    command = f'"{sys.executable}" -c "$PROGRAM" "{ROOT}" {where}'
    if stdout.startswith("a pipe"):
        command = f"set -o pipefail; {command} | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=120,
                          env={**os.environ, "PROGRAM": LOGGING})
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "done").read_text() == "saved"   # and not lines of the log


def test_a_path_that_is_too_long_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"), user_errors("p.py"):
        (tmp_path / ("a" * 300)).is_dir()
    said = capsys.readouterr().err
    assert said.startswith(f"p.py: the path {str(tmp_path)[:20]}")
    assert said.endswith("… is too long: give a shorter one\n")


def test_ctrl_c_during_imports_is_no_traceback(tmp_path):
    program = "from utils import importing_much\nwith importing_much():\n    raise KeyboardInterrupt"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "")


def at_step(monkeypatch, step: int, do) -> None:
    """Calls `do` during a step of training."""
    whole, calls = epoch.segmentation_loss, []

    def loss(*inputs):
        calls.append(1)
        if len(calls) == step:
            do()
        return whole(*inputs)

    monkeypatch.setattr(epoch, "segmentation_loss", loss)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_saves_the_run(toy, monkeypatch, number):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)   # it would stay ignored under nohup
    at_step(monkeypatch, 2, lambda: os.kill(os.getpid(), number))
    with pytest.raises(train.Interrupted):
        train.run(arguments(toy))
    signal.signal(signal.SIGHUP, before)
    assert read_checkpoint("checkpoints/model_last_m.pth")["progress"]["step"] == 2


def test_a_killed_loader_process_saves_the_run_and_is_one_line(toy, monkeypatch):
    def kill() -> None:
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGKILL)

    at_step(monkeypatch, 2, kill)
    with pytest.raises(MachineError, match=r"a loader process is gone.* The run is saved; --resume auto goes on"):
        train.run(arguments(toy, "--workers", 1))
    assert read_checkpoint("checkpoints/model_last_m.pth")["progress"]["step"] in (2, 3)   # one batch may be ready


NO_MEMORY = (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.20 GiB. GPU 0 has a total capacity of"),
             RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: "
                          "you tried to allocate 64 bytes. Error code 12 (Cannot allocate memory)"))
FLAGS_THAT_NEED_LESS = ("--amp bf16", "--batch-size", "--accumulate", "--checkpoint_activations")


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(("error", "asked"), [(NO_MEMORY[0], "2.20 GiB"), (NO_MEMORY[1], "64 bytes")])
def test_a_step_without_memory_saves_the_run_and_names_the_flags_that_need_less(toy, monkeypatch, error, asked):
    at_step(monkeypatch, 3, lambda: fail(error))
    with pytest.raises(MachineError) as raised:
        train.run(arguments(toy))
    said = str(raised.value)
    assert all(flag in said for flag in FLAGS_THAT_NEED_LESS) and f"no memory left for another {asked}" in said
    assert said.endswith("The run is saved; --resume auto goes on")
    assert read_checkpoint("checkpoints/model_last_m.pth")["progress"]["step"] == 2


def test_an_update_without_memory_is_not_saved(toy, monkeypatch):
    """It may have changed a part of the weights."""
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: fail(NO_MEMORY[0]))
    with pytest.raises(UserError, match=r"no memory left .* an update was under way"):
        train.run(arguments(toy))
    assert not Path("checkpoints/model_last_m.pth").exists()


@pytest.mark.parametrize("error", NO_MEMORY)
def test_any_program_says_a_lack_of_memory_in_one_line(error, capsys):
    with pytest.raises(SystemExit) as ended, user_errors("test.py"):
        raise error
    said = capsys.readouterr().err
    assert ended.value.code == 1 and said.count("\n") == 1 and "test.py: " in said and "--batch-size" in said


@pytest.mark.parametrize("error", [RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
                                   ConnectionResetError(104, "Connection reset by peer"), EOFError(),
                                   RuntimeError("Pin memory thread exited unexpectedly"),
                                   RuntimeError("Caught RuntimeError in pin memory thread for device 0.")])
def test_each_sign_of_a_killed_loader_process_is_one_line(error):
    """Which one PyTorch raises depends on what the process did when it was killed."""
    def batches():
        raise error
        yield

    with pytest.raises(MachineError, match="a loader process is gone"):
        next(log_problems(batches(), []))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")   # of Pillow, for the oldest formats
@pytest.mark.parametrize("area", AREAS)
def test_mutated_inputs_end_well(area):
    """`python tools/fuzz.py` has thousands of each."""
    assert fuzz(8, seed=1, areas=[area])["failures"] == []
