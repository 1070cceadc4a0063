"""train.py with a fault or a gauge built in, for tests/faults/torture.py and the tests; arguments are train.py's.

Environment variables, each optional; steps count the calls of the loss in a process, from 1:
FAULT=KIND:RANK:STEP    at that step of that process: `nan` spoils the loss, `raise` raises, `kill` is SIGKILL, `term`
                        SIGTERM to itself, `hang` SIGSTOP; not again after a restart by torchrun.
LOSSES=FILE             appends "rank step loss" (hexadecimal float) for every step.
HASHES=FILE             appends "rank sha256" of the final weights and statistics when the run ends.
PATIENCE=SECONDS        how long a process waits for the others to agree on stopping.
NARROW=1                makes nano smaller, as the fixture `narrow_nano` does.
GAUGES=FILE             appends "step resident_kib open_files threads" for every step of the first process.
"""
import hashlib
import os
import signal
import sys
import threading
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import distributed
import train
import utils
from args import TRAINING, get_parser
from distributed import signals
from lib.segmentation import SWIN_VARIANTS
from lib.training import epoch

SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "hang": signal.SIGSTOP}
_steps = 0
_models: list[torch.nn.Module] = []


def append(variable: str, *values: object) -> None:
    """Adds a line to the file that an environment variable names, if it does."""
    if path := os.environ.get(variable):
        with open(path, "a") as file:
            file.write(" ".join(map(str, values)) + "\n")


def resident_kib() -> int:
    """Memory of this process that is in RAM, in KiB."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in line)


def loss_with_fault(logits: torch.Tensor, target: torch.Tensor, text: str) -> torch.Tensor:
    """The loss of train.py, and whatever the environment asks for."""
    global _steps
    _steps += 1
    loss = segmentation_loss(logits, target, text)
    append("LOSSES", utils.rank(), _steps, loss.item().hex())
    if utils.rank() == 0:
        append("GAUGES", _steps, resident_kib(), len(os.listdir("/proc/self/fd")), threading.active_count())
    kind, rank, step = os.environ.get("FAULT", "none:0:0").split(":")
    if (utils.rank(), _steps) == (int(rank), int(step)) and not distributed.was_restarted():
        if kind == "raise":
            raise RuntimeError("a fault built in")
        if kind == "nan":
            return loss * float("nan")
        os.kill(os.getpid(), SIGNALS[kind])
    return loss


def wrap(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """distributed.wrap, remembering the model."""
    _models.append(model)
    return original_wrap(model, device)


def end_processes() -> None:
    """distributed.end_processes, after the weights' hash was written."""
    if os.environ.get("HASHES"):
        digest = hashlib.sha256()
        for tensor in _models[0].state_dict().values():
            digest.update(tensor.cpu().numpy().tobytes())
        append("HASHES", utils.rank(), digest.hexdigest())
    original_end()


if __name__ == "__main__":
    if "NARROW" in os.environ:
        from tests.conftest import NARROW_NANO
        SWIN_VARIANTS["nano"] = NARROW_NANO
    signals.PATIENCE_S = float(os.environ.get("PATIENCE", signals.PATIENCE_S))
    segmentation_loss = epoch.segmentation_loss
    original_wrap, original_end = distributed.wrap, distributed.end_processes
    epoch.segmentation_loss, distributed.wrap, distributed.end_processes = loss_with_fault, wrap, end_processes
    train.main(get_parser(*TRAINING).parse_args())
