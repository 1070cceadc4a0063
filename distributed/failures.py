"""How a script ends after an error: one line for a mistake, and one process that speaks for all."""
import errno
import os
import re
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from distributed.leaving import leave
from distributed.signals import stop_requested
from utils import MachineError, UserError, printable, standard_output


@contextmanager
def user_errors(program: str) -> Iterator[None]:
    """A context that turns a `UserError` into one line on stderr and exit status 2, a `MachineError` into status 1.

    A lack of memory for a tensor is one line and status 1, too. Other exceptions are bugs and give a traceback and
    status 1. Standard output exists inside (see `utils`).
    Among several processes the one that fails first prints its message first, and the launcher repeats this message at
    the end. The other processes, which the launcher ends or which lose the connection, print theirs only if they still
    run after a delay.
    """
    number = int(os.environ.get("RANK", 0))
    signature = f" [process {number}]" if number > 0 else ""
    try:
        with standard_output(), _impossible_paths():
            yield
    except MachineError as error:
        leave(1, printable(f"{program}: {' '.join(str(error).splitlines())}{signature}"))
    except UserError as error:
        message = str(error).strip().splitlines()[-1] if "Original Traceback" in str(error) else str(error)
        message = message.removeprefix(f"{UserError.__module__}.{UserError.__name__}: ")  # a worker's prefix
        if number > 0:
            _let_the_first_one_speak(2)  # most errors occur on all processes
        leave(2, printable(f"{program}: {' '.join(message.splitlines())}{signature}"))
    except Exception as error:
        if out_of_memory(error):
            leave(1, printable(f"{program}: {memory_advice(error)}{signature}"))
        if not dist.is_initialized():
            raise
        if not _lost_a_process(error):
            leave(1, traceback.format_exc().rstrip())
        _let_the_first_one_speak(1)
        leave(1, f"{program}: another process is gone; its message says why, and the last checkpoint is intact "
                  f"({str(error).strip().splitlines()[0]}){signature}", is_cause=False)


def out_of_memory(error: Exception) -> bool:
    """Whether PyTorch found no memory for a tensor, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error))


def memory_advice(error: Exception) -> str:
    """A sentence for an error that is `out_of_memory`: what was asked for, and the flags that need less."""
    where = "the GPU" if isinstance(error, torch.OutOfMemoryError) else "this machine"
    asked = re.search(r"ried to allocate ([\d.]+ \w+)", str(error))
    return (f"{where} has no memory left{f' for another {asked[1]}' if asked else ''}: give --amp bf16 or a smaller "
            "--batch-size; in training --accumulate keeps the batch of an update, and --checkpoint_activations keeps "
            "fewer activations")


@contextmanager
def _impossible_paths() -> Iterator[None]:
    """Turns the error for a path that is too long for the file system into a `UserError`.

    Every access to such a path raises it, so it is caught here and not at each of them.
    """
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise UserError(f"the path {str(error.filename)[:100]}… is too long: give a shorter one") from error


def _lost_a_process(error: Exception) -> bool:
    """Whether a collective failed because another process is gone."""
    lost = ("closed by peer", "reset by peer", "Broken pipe", "Socket closed", "Timed out", "Connection refused")
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError)
                                                 and any(words in str(error) for words in lost))


def _let_the_first_one_speak(status: int) -> None:
    """Waits for the first process's message; if the launcher ends this process meanwhile, it exits silently."""
    time.sleep(3)
    if stop_requested():
        leave(status, "", is_cause=False)
