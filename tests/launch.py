"""Starts the project's scripts as a user or a launcher does."""
import faulthandler
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 300   # with a script


def launcher_variables(processes: int) -> dict[str, str]:
    """The variables that a launcher sets for all processes of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}


class Forked:
    """What `python SCRIPT FLAGS…` does in `cwd`, in processes that are forked, as PyTorch is loaded here already.

    Several processes find each other by the variables that launchers set.
    """

    def __init__(self, script: str, *flags: object, cwd: Path, processes: int = 1):
        self.command = [script, *map(str, flags)]
        self.folder = tempfile.TemporaryDirectory()
        self.launcher = launcher_variables(processes)
        self.processes = [multiprocessing.get_context("fork").Process(target=self._run, args=(rank, processes, cwd))
                          for rank in range(processes)]
        for process in self.processes:
            process.start()

    def _outputs(self, rank: int) -> list[Path]:
        return [Path(self.folder.name, f"{kind}{rank}") for kind in ("stdout", "stderr")]

    def _run(self, rank: int, processes: int, cwd: Path) -> None:
        for number, path in enumerate(self._outputs(rank), start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))
        faulthandler.dump_traceback_later(PATIENCE_S - 10, file=sys.stderr)   # a process that hangs says where
        if processes > 1:
            os.environ.update(self.launcher, RANK=str(rank), LOCAL_RANK=str(rank))
        torch.set_num_threads(torch.get_num_threads())   # makes the pool anew, which two threads at once cannot
        os.chdir(cwd)
        sys.argv = self.command
        runpy.run_path(str(ROOT / self.command[0]), run_name="__main__")

    @property
    def said(self) -> str:
        """What the first process has printed so far."""
        return "".join(path.read_text() for path in self._outputs(0) if path.exists())

    def wait_for(self, words: str) -> None:
        """Returns when the first process has printed these words. An AssertionError if it ends or hangs before."""
        end = time.monotonic() + PATIENCE_S
        while words not in self.said:
            if time.monotonic() > end or (not self.processes[0].is_alive() and words not in self.said):
                for process in self.processes:
                    process.kill()
                raise AssertionError(self.said)
            time.sleep(0.02)

    def finish(self) -> subprocess.CompletedProcess:
        """Waits for the processes; their outputs one after the other, and the exit status of greatest size."""
        with self.folder:
            for process in self.processes:
                process.join(PATIENCE_S)
                process.kill()
            outputs = zip(*map(self._outputs, range(len(self.processes))), strict=True)
            said = ["".join(path.read_text() for path in paths) for paths in outputs]
        statuses = [process.exitcode for process in self.processes]
        return subprocess.CompletedProcess(self.command, max(statuses, key=abs), *said)


def run_script(script: str, *flags: object, cwd: Path, processes: int = 1) -> subprocess.CompletedProcess:
    """Does what `python SCRIPT FLAGS…` does in `cwd`, in forked processes."""
    return Forked(script, *flags, cwd=cwd, processes=processes).finish()


def nano_flags(root: Path, *flags: object) -> list[str]:
    """Flags of train.py for a nano network of 64 px on the toy set in `root`, with its text encoder; then `flags`."""
    return [str(flag) for flag in (
        "--refer_data_root", root, "--swin_type", "nano", "--img_size", 64, "--ck_bert", root / "bert",
        "--bert_tokenizer", root / "bert", "--workers", 0, *flags)]


def assert_refused(done: subprocess.CompletedProcess, *parts: str) -> None:
    """The script ended with status 2 and one line that holds the parts."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr, done.stderr


def start_training(folder: Path, toy: Path, *flags: object, processes: int = 1, launcher: tuple = (),
                   said_file: Path | None = None, **environment: str) -> subprocess.Popen:
    """Starts tests/faults/instrumented_train.py in a folder of its own, with batches of 8 over all processes.

    It is run alone or, in several processes, by torchrun with the flags `launcher`. The output is appended to
    `said_file`, said.txt in the folder unless given.
    """
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes, *launcher]
    command = [sys.executable, *(torchrun if processes > 1 else ()), ROOT / "tests/faults/instrumented_train.py",
               *nano_flags(toy, "--batch-size", 8 // processes, "--print-freq", 1, *flags)]
    folder.mkdir(exist_ok=True)
    with (said_file or folder / "said.txt").open("a") as said:
        return subprocess.Popen(list(map(str, command)), cwd=folder, stdout=said, stderr=said, start_new_session=True,
                                env={**os.environ, "OMP_NUM_THREADS": "1", "RUN": str(folder), **environment})


def processes_of(folder: Path) -> list[int]:
    """Processes of a run started with RUN=FOLDER in its environment, its loaders' workers included (Linux only)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"RUN={folder}\0".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found
