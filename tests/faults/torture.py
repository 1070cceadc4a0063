"""Does to training what clusters, disks and strangers' files do to it, and counts how often it comes out unharmed.

The figures of docs/reliability.md come from `python tests/faults/torture.py --json torture.json`; test_faults.py
has one trial of most. Everything happens in a temporary folder, on the CPU, on a toy data set (Linux only).
"""
import argparse
import io
import json
import multiprocessing
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.toy import make_toy_rrsisd
from distributed import EXIT_REQUEUE, user_errors
from lib.checkpoint import read_checkpoint, save_checkpoint
from lib.training.resume import find_checkpoint
from lib.training.state import run_files
from refer.plain_pickle import load_plain_pickle
from tests.launch import processes_of, start_training
from utils import UserError, log, write_json

STEPS_AN_EPOCH = 4  # the toy set's 32 training refs in batches of 8


class Run:
    """A training run in a folder of its own: `processes` of 1 is train.py alone, more are started by torchrun."""

    def __init__(self, folder: Path, toy: Path, *flags: object, processes: int = 1, restarts: int = 0,
                 said_file: Path | None = None, **environment: str):
        self.folder, self.said_file = folder, said_file or folder / "said.txt"
        self.process = start_training(folder, toy, "--model_id", "t", "--device", "cpu", "--deterministic", *flags,
                                      processes=processes, launcher=("--max-restarts", restarts),
                                      said_file=self.said_file, **environment)

    @property
    def said(self) -> str:
        """What the run has printed so far."""
        return self.said_file.read_text()

    @property
    def steps(self) -> int:
        """Training steps that the log shows."""
        return self.said.count(" images/s")

    def wait_for_steps(self, steps: int) -> None:
        """Returns when the log shows that many steps."""
        while self.steps < steps and self.process.poll() is None:
            time.sleep(0.02)

    def seconds_until_gone(self, limit_s: float = 120) -> float:
        """How long it takes until no process of the run is left; after `limit_s` they are killed."""
        begun = time.monotonic()
        while self.process.poll() is None or processes_of(self.folder):
            if time.monotonic() - begun > limit_s:
                for process in processes_of(self.folder):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.05)
        return time.monotonic() - begun

    def saved_steps(self) -> int:
        """Steps that the last checkpoint holds."""
        progress = read_checkpoint(self.folder / "checkpoints/model_last_t.pth")["progress"]
        return progress["epoch"] * STEPS_AN_EPOCH + progress["step"]

    def lines(self, name: str) -> list[list[str]]:
        """The words of each line of a file that tests/faults/instrumented_train.py wrote."""
        return [line.split() for line in (self.folder / name).read_text().splitlines()]


def _save_forever(folder: Path, done: Any) -> None:
    for number in range(1_000_000):
        for file in reversed(run_files(folder, "t").values()):   # the best checkpoint first, as train.py does
            save_checkpoint(file, {"model": {"w": torch.full((500_000,), float(number))}, "number": number,
                                   "progress": {"epoch": number}})
            done.value = number


def saving(folder: Path, toy: Path, trials: int = 200) -> dict[str, Any]:
    """kill -9 at random moments of a process that saves best and last without pause: the newest must be found."""
    draw, fork = random.Random(0), multiprocessing.get_context("fork")
    loadable = half_written = 0
    for _ in range(trials):
        done = fork.Value("i", -1)
        process = fork.Process(target=_save_forever, args=(folder, done))
        process.start()
        while done.value < 0:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.2))
        process.kill()
        process.join()
        half_written += any(folder.glob(".*.tmp.pth"))
        checkpoint = find_checkpoint(folder, "t")[1]
        whole = bool((checkpoint["model"]["w"] == checkpoint["number"]).all())
        loadable += whole and checkpoint["number"] >= done.value
        for file in folder.glob("*"):   # numbers begin again
            file.unlink()
    return {"trials": trials, "loadable and newest": loadable, "killed with a file half-written": half_written}


def signals(folder: Path, toy: Path, trials: int = 20) -> dict[str, Any]:
    """SIGTERM or SIGHUP to train.py at any moment, validation and writing among them: saved, nothing logged is lost."""
    draw, slowest, good = random.Random(4), 0.0, 0
    for trial in range(trials):
        run = Run(folder / str(trial), toy, "--epochs", 100, "--save_every", 1)
        run.wait_for_steps(draw.randint(1, 6))
        time.sleep(draw.uniform(0, 1))
        run.process.send_signal((signal.SIGTERM, signal.SIGHUP)[trial % 2])
        seconds = run.seconds_until_gone()
        slowest = max(slowest, seconds)
        well = run.process.returncode == EXIT_REQUEUE and seconds < 20 and run.saved_steps() >= run.steps
        if not well:
            log(f"    trial {trial}: status {run.process.returncode}, {seconds:.1f} s\n{run.said}")
        good += well
    return {"trials": trials, "saved, nothing logged is lost, status 75": good, "slowest (s)": round(slowest, 1)}


def twice(folder: Path, toy: Path, trials: int = 5) -> dict[str, Any]:
    """A second run of one name beside the first, then again after kill -9: refused in one line, then let in."""
    good = 0
    for trial in range(trials):
        first = Run(folder / str(trial), toy, "--epochs", 100, "--save_every", 1, "--workers", 2 * (trial % 2))
        first.wait_for_steps(2)
        second = Run(first.folder, toy, "--epochs", 100)
        status = second.process.wait(timeout=600)
        refused = status == 2 and "another run of --model_id t is writing to" in first.said
        going_on = first.process.poll() is None
        first.process.kill()
        first.process.wait()
        third = Run(first.folder, toy, "--epochs", 100, "--resume", "auto")
        third.wait_for_steps(first.steps + 2)
        good += refused and going_on and "going on with epoch" in third.said and third.process.poll() is None
        third.process.kill()
        third.seconds_until_gone()
    return {"trials": trials, "refused, the first went on, a third after kill -9 let in": good}


def full_disks(folder: Path, toy: Path, trials: int = 3) -> dict[str, Any]:
    """No room for checkpoints, for the record of the run, for the log (needs the right to mount): nothing is lost."""
    said: dict[str, str] = {}
    for number, kind in enumerate(("checkpoints", "models", "log")[:trials]):
        run_folder = folder / str(number)
        (small := run_folder / kind).mkdir(parents=True)
        if kind != "log":
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={'60m' if kind == 'checkpoints' else '8k'}", "tmpfs",
                            small], check=True)
        try:
            run = Run(run_folder, toy, "--epochs", 2, said_file=Path("/dev/full") if kind == "log" else None)
            run.seconds_until_gone()
            status, saved = run.process.returncode, sorted(path.name for path in run_folder.rglob("*.pth"))
            said[kind] = f"status {status}, {', '.join(saved)}"
        finally:
            if kind != "log":
                subprocess.run(["umount", small], check=True)
    return {"trials": len(said), **said}


def resume(folder: Path, toy: Path, trials: int = 12) -> dict[str, Any]:
    """Stopped in an epoch's middle or at its end, with 0, 2 or 4 workers, by one process or two: the same bits."""
    cases = [(processes, workers, steps) for processes in (1, 2) for steps in (6, 8) for workers in (0, 2, 4)][:trials]
    equal, compared = 0, 0
    whole = {}
    for processes in sorted({case[0] for case in cases}):
        whole[processes] = Run(folder / f"whole{processes}", toy, "--epochs", 15, "--fusion_drop", 0.1,
                               processes=processes, LOSSES="losses", HASHES="hashes")
        whole[processes].seconds_until_gone(300)
    for number, (processes, workers, steps) in enumerate(cases):
        flags = ("--epochs", 15, "--fusion_drop", 0.1, "--workers", workers)
        written = {"LOSSES": "losses", "HASHES": "hashes"}
        run = Run(folder / f"case{number}", toy, *flags, processes=processes, FAULT=f"term:0:{steps}", **written)
        run.seconds_until_gone(300)
        stopped = run.saved_steps()
        run = Run(run.folder, toy, *flags, "--resume", "auto", processes=processes, **written)
        run.seconds_until_gone(300)
        reference = whole[processes]
        losses, expected = ({(rank, loss) for rank, _, loss in r.lines("losses")} for r in (run, reference))
        after = (15 * STEPS_AN_EPOCH - stopped) * processes
        same = (stopped == steps and losses == expected and len(run.lines("losses")) == 60 * processes
                and {line[1] for line in run.lines("hashes")} == {line[1] for line in reference.lines("hashes")}
                and len({line[1] for line in reference.lines("hashes")}) == 1)
        equal, compared = equal + same, compared + after
        log(f"    {processes} process(es), {workers} workers, stopped after step {stopped}: "
            f"{'equal' if same else 'NOT equal'}")
    return {"trials": len(cases), "losses and final weights equal bit for bit": equal, "losses compared": compared}


def sigterm(folder: Path, toy: Path, trials: int = 20) -> dict[str, Any]:
    """SIGTERM to torchrun at a random moment: saved, at most the step at hand lost, all gone within 20 s."""
    draw, slowest, good = random.Random(1), 0.0, 0
    for trial in range(trials):
        run = Run(folder / str(trial), toy, "--epochs", 100, "--workers", 2 * (trial % 2), processes=2)
        run.wait_for_steps(draw.randint(1, 10))
        time.sleep(draw.uniform(0, 0.3))
        run.process.send_signal(signal.SIGTERM)
        seconds = run.seconds_until_gone()
        slowest = max(slowest, seconds)
        well = seconds < 20 and run.saved_steps() >= run.steps and "stopped by a signal, saved" in run.said
        if not well:
            log(f"    trial {trial}: {seconds:.1f} s, {run.saved_steps()} of {run.steps} steps saved\n{run.said}")
        good += well
    return {"trials": trials, "saved, nothing logged is lost, gone in 20 s": good, "slowest (s)": round(slowest, 1)}


def processes(folder: Path, toy: Path, trials: int = 9) -> dict[str, Any]:
    """NaN, an exception or kill -9 on one of two processes: both gone, the cause said last, the checkpoint stands."""
    draw, good, slowest, restarted = random.Random(2), 0, 0.0, 0
    last_words = {"nan": r"train\.py: loss or gradient is not finite in epoch \d+, iteration \d+, on refs .*",
                  "raise": r"RuntimeError: a fault built in", "kill": r"Signal 9 \(SIGKILL\) received by PID \d+"}
    for trial in range(trials):
        kind, rank, step = ("nan", "raise", "kill")[trial % 3], draw.randint(0, 1), draw.randint(2, 10)
        run = Run(folder / str(trial), toy, "--epochs", 4, "--save_every", 1, "--workers", 2 * (trial % 2), processes=2,
                  FAULT=f"{kind}:{rank}:{step}")
        run.wait_for_steps(step - 1)   # the fault comes in the next one
        seconds = run.seconds_until_gone()
        slowest = max(slowest, seconds)
        last = run.said.rstrip("=\n ").splitlines()[-1]
        finite = all(tensor.isfinite().all() for tensor in read_checkpoint(
            run.folder / "checkpoints/model_last_t.pth")["model"].values())
        good += bool(re.search(last_words[kind], last)) and finite and run.saved_steps() == step - 1 and seconds < 30
        if kind != "nan":
            run = Run(folder / f"again{trial}", toy, "--epochs", 4, "--save_every", 1, processes=2, restarts=1,
                      FAULT=f"{kind}:{rank}:{step}")
            run.seconds_until_gone()
            restarted += "finished: best val" in run.said and f"iteration {(step - 1) % STEPS_AN_EPOCH};" in run.said
    return {"trials": trials, "all gone, cause said last, checkpoint stands": good, "slowest (s)": round(slowest, 1),
            "with --max-restarts": trials - trials // 3, "went on and finished": restarted}


class _Calls:
    def __init__(self, function: Callable, *arguments: object):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable, tuple]:
        return self.function, self.arguments


def pickles(folder: Path, toy: Path, trials: int = 10) -> dict[str, Any]:
    """Pickles that would create a file if loaded, as refs and as checkpoints: refused, and the file is not there."""
    canary = folder / "canary"
    touch = f"open({str(canary)!r}, 'w')"
    calls = [_Calls(os.system, f"touch {canary}"), _Calls(exec, touch), _Calls(eval, touch),
             _Calls(open, str(canary), "w"), _Calls(os.mkdir, str(canary)), _Calls(subprocess.Popen, ["touch", canary]),
             _Calls(getattr, Path, "touch"), _Calls(Path.touch, canary), _Calls(__import__, "antigravity"),
             _Calls(io.FileIO, str(canary), "w")][:trials]
    refused = 0
    for number, call in enumerate(calls):
        refs, checkpoint = folder / "refs.p", folder / f"{number}.pth"
        refs.write_bytes(pickle.dumps([{"ref_id": call}], protocol=number % 5))
        torch.save({"model": {}, "args": call}, checkpoint, _use_new_zipfile_serialization=number % 2 == 0)
        for load, path in ((load_plain_pickle, refs), (read_checkpoint, checkpoint)):
            try:
                load(path)
            except UserError:
                refused += 1
    return {"trials": 2 * len(calls), "refused": refused, "canary files": int(canary.exists())}


def checkpoints(folder: Path, toy: Path, trials: int = 100) -> dict[str, Any]:
    """Checkpoints cut short, with a bit flipped or a page of zeros, with and without their SHA-256: refused.

    Without it, a bit in what pads the archive may flip unseen, which changes nothing: this is counted apart.
    """
    draw, refused, harmless = random.Random(3), 0, 0
    whole = folder / "whole.pth"
    weights = {str(i): torch.randn(64, 64) for i in range(30)}
    save_checkpoint(whole, {"model": weights, "epoch": 1})
    content = whole.read_bytes()
    for trial in range(trials):
        damaged = bytearray(content)
        place = draw.randrange(len(content))
        if trial % 4 == 0:
            del damaged[place:]
        elif trial % 4 == 1:
            damaged[place:place + 4096] = bytes(4096)
        else:
            damaged[place] ^= 1 << draw.randrange(8)
        path = folder / f"{trial}.pth"
        path.write_bytes(damaged)
        if trial % 2:
            (folder / f"{trial}.pth.sha256").write_text((folder / "whole.pth.sha256").read_text())
        try:
            loaded = read_checkpoint(path)
            harmless += all(torch.equal(loaded["model"][name], weight) for name, weight in weights.items())
        except UserError:
            refused += 1
    return {"trials": trials, "refused": refused, "damaged in padding alone, and loaded whole": harmless}


def soak(folder: Path, toy: Path, trials: int = 500) -> dict[str, Any]:
    """A long run: memory, open files and threads of the first process from step 50 on."""
    run = Run(folder / "run", toy, "--epochs", -(-trials // STEPS_AN_EPOCH), "--workers", 2, "--save_every", 25,
              GAUGES="gauges")
    run.seconds_until_gone(1800)
    gauges = [tuple(map(int, line)) for line in run.lines("gauges")]
    settled = [gauge for gauge in gauges if gauge[0] > 50]
    tenth = max(1, len(settled) // 10)
    first, last = (sum(g[1] for g in part) / len(part) for part in (settled[:tenth], settled[-tenth:]))
    return {"steps": len(gauges), "memory at first (MiB)": round(first / 1024),
            "memory at last (MiB)": round(last / 1024), "growth (%)": round(100 * (last / first - 1), 2),
            "open files": sorted({g[2] for g in settled}), "threads": sorted({g[3] for g in settled})}


SCENARIOS = {scenario.__name__: scenario
             for scenario in (saving, signals, twice, full_disks, checkpoints, pickles, processes, sigterm, resume,
                              soak)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="which of these, default all:\n" + "\n".join(
        f"{name}: {scenario.__doc__}" for name, scenario in SCENARIOS.items()))
    parser.add_argument("--trials", type=int, help="instead of each scenario's own number (soak: steps)")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    args = parser.parse_args()
    torch.set_num_threads(1)   # forked children cannot use this process's other threads
    with user_errors("torture.py"):
        if unknown := sorted(set(args.scenarios) - set(SCENARIOS)):
            raise UserError(f"no scenario {', '.join(unknown)}: choose from {', '.join(SCENARIOS)}")
        figures: dict[str, Any] = {}
        with tempfile.TemporaryDirectory() as temporary:
            toy = Path(temporary) / "toy"
            make_toy_rrsisd(toy, images=20, size=64, seed=3)
            for name in args.scenarios or SCENARIOS:
                folder = Path(temporary) / name
                folder.mkdir()
                begun = time.monotonic()
                trials = {"trials": args.trials} if args.trials else {}
                figures[name] = SCENARIOS[name](folder, toy, **trials)
                figures[name]["seconds"] = round(time.monotonic() - begun)
                log(f"{name}: {json.dumps(figures[name])}")
        if args.json:
            write_json(args.json, figures)


if __name__ == "__main__":
    main()
