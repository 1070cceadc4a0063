"""The processes of a run: their connection, communication, common stop, and their end after a failure."""
import errno
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils import MachineError, UserError, log, printable, rank, standard_output, world_size

T = TypeVar("T")


# Failures

@contextmanager
def user_errors(program: str) -> Iterator[None]:
    """A context that turns a `UserError` into one line on stderr and exit status 2, a `MachineError` into status 1.

    Other exceptions are bugs and give a traceback and status 1. Standard output exists inside (see `utils`).
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
        _leave(1, printable(f"{program}: {' '.join(str(error).splitlines())}{signature}"))
    except UserError as error:
        message = str(error).strip().splitlines()[-1] if "Original Traceback" in str(error) else str(error)
        message = message.removeprefix(f"{UserError.__module__}.{UserError.__name__}: ")  # a worker's prefix
        if number > 0:
            _let_the_first_one_speak(2)  # most errors occur on all processes
        _leave(2, printable(f"{program}: {' '.join(message.splitlines())}{signature}"))
    except Exception as error:
        if not dist.is_initialized():
            raise
        if not _lost_a_process(error):
            _leave(1, traceback.format_exc().rstrip())
        _let_the_first_one_speak(1)
        _leave(1, f"{program}: another process is gone; its message says why, and the last checkpoint is intact "
                  f"({str(error).strip().splitlines()[0]}){signature}", is_cause=False)


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
        _leave(status, "", is_cause=False)


def _leave(status: int, message: str, is_cause: bool = True) -> NoReturn:
    """Prints the message and ends this process, at once if other processes may wait for it in turn."""
    with suppress(OSError):   # the terminal may be closed
        if message:
            print(message, file=sys.stderr, flush=True)
    if not dist.is_initialized():
        sys.exit(status)
    if is_cause and "TORCHELASTIC_ERROR_FILE" in os.environ:  # torchrun shows this file's message at the end
        report = {"message": {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}}
        Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps(report))
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(status)


# Start and communication

def local_rank(flag: int) -> int:
    """This process's number on its machine, from 0: LOCAL_RANK, or the flag `--local_rank` of older launchers."""
    return int(os.environ.get("LOCAL_RANK", flag))


def init_processes(device: str | None, local_rank_flag: int, timeout_s: float = 600) -> torch.device:
    """Joins the process group of a launcher, if there is one, and chooses this process's device by its local rank.

    `torchrun` and `torch.distributed.launch` set the variables RANK and WORLD_SIZE. NCCL connects GPUs, Gloo connects
    CPUs. A process that waits for another one longer than `timeout_s` gives up. Raises `UserError` for a GPU that does
    not exist.
    """
    number = local_rank(local_rank_flag)
    if device is None:
        device = f"cuda:{number}" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" or (device.startswith("cuda") and int(os.environ.get("WORLD_SIZE", 1)) > 1):
        device = f"cuda:{number}"
    chosen = torch.device(device)
    if chosen.type == "cuda":
        if (chosen.index or 0) >= torch.cuda.device_count():
            raise UserError(f"--device {device}: this machine has {torch.cuda.device_count()} usable GPUs; leave the "
                            "flag out to run on what there is, or start fewer processes")
        torch.cuda.set_device(chosen)
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        store, number, processes = _fresh_store(timeout := timedelta(seconds=timeout_s))
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=timeout, store=store, rank=number,
                                world_size=processes)
    return chosen


def _fresh_store(timeout: timedelta) -> tuple[dist.Store, int, int]:
    """A store for the processes of this start, this process's rank, and the number of processes.

    torchrun keeps its store over restarts, and Gloo would find the addresses of ended processes in it. The first
    process therefore invents a new prefix and gives it to each other process that proves by its answer to be alive.
    """
    store, number, processes = next(dist.rendezvous("env://", timeout=timeout))
    if number > 0:
        own = uuid.uuid4().hex
        store.set(f"asks/{number}", own)
        name = store.get(f"name/{own}").decode()
        store.set(f"{name}/{number}", "here")
        return dist.PrefixStore(name, store), number, processes
    name, missing = uuid.uuid4().hex, set(range(1, processes))
    give_up = time.monotonic() + timeout.total_seconds()
    while missing:
        for other in missing:
            if store.check([f"asks/{other}"]):   # possibly written by a process that has ended
                store.set(f"name/{store.get(f'asks/{other}').decode()}", name)
        missing = {other for other in missing if not store.check([f"{name}/{other}"])}
        if time.monotonic() > give_up:
            raise UserError(f"processes {sorted(missing)} did not start within {timeout}: see the messages of their "
                            "machines, or give them longer with --timeout")
        time.sleep(0.02)
    return dist.PrefixStore(name, store), number, processes


def was_restarted() -> bool:
    """Whether torchrun restarted this process after a failure (`--max-restarts`) or a change of machines."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def leave_at_once() -> NoReturn:
    """Ends a finished script at once; Python would need another second to free the imported packages."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)


def end_processes() -> None:
    """Destroys the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def from_first_process(make: Callable[[], T]) -> T:
    """The result of `make()`, called by the first process only and sent to the others (plain picklable data)."""
    if world_size() == 1:
        return make()
    box = [make() if rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_rows(rows: Tensor) -> Tensor:
    """The rows (n, k) of all processes, in process order; n may differ between them."""
    if world_size() == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    padded = rows.new_zeros(max(int(count) for count in counts), rows.shape[1])
    padded[:len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:int(count)] for part, count in zip(parts, counts, strict=True)])


def gather_objects(value: T) -> list[T]:
    """Every process's value (plain picklable data), in process order."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """The module that a training step calls: with several processes, it synchronises gradients and BatchNorm."""
    if world_size() == 1:
        return model
    # The router's depthwise weights have an axis of length 1, whose stride has no meaning.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    if device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return DistributedDataParallel(model, device_ids=[device.index], gradient_as_bucket_view=True,
                                       broadcast_buffers=False)
    log("BatchNorm is not synchronised: SyncBatchNorm needs GPUs; each CPU process normalises its own batch")
    return DistributedDataParallel(model, gradient_as_bucket_view=True, broadcast_buffers=False)


def share_buffers(model: nn.Module) -> None:
    """Copies the buffers of the first process's model to all others."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


# Signals

EXIT_REQUEUE = 75  # exit status of a run that a signal stopped and that can be resumed: "try again" in sysexits
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
PATIENCE_S = 25  # time for all processes to agree on stopping; launchers kill after 30 s
_signals: list[int] = []
_agreed = threading.Event()


def watch_signals() -> None:
    """Makes SIGTERM, SIGINT, SIGUSR1 and SIGHUP only request a stop; a second signal has its default effect.

    Ignored signals, such as SIGHUP under nohup, stay ignored.

    A process of several ends itself if it cannot agree on stopping with the others within `PATIENCE_S` after the
    signal, because one of them may be gone, and a collective would wait for it.
    """
    def note(number: int, frame: Any) -> None:
        _signals.append(number)
        for watched in heeded:
            signal.signal(watched, signal.SIG_DFL)

    heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    for watched in heeded:
        signal.signal(watched, note)
    if world_size() > 1:
        # The main thread cannot handle a signal while it waits inside a collective; this pipe receives it at once.
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        threading.Thread(target=_leave_unless_agreed, args=(read_end,), daemon=True).start()


def _leave_unless_agreed(signals: int) -> None:
    while os.read(signals, 1)[0] not in STOP_SIGNALS:
        pass
    if not _agreed.wait(PATIENCE_S):
        _leave(1, f"process {rank()} could not agree with the others on stopping within {PATIENCE_S} s of the signal; "
                  "the last checkpoint is intact", is_cause=False)


def stop_requested() -> bool:
    """Whether this process has received a signal to stop."""
    return bool(_signals)


_control_group: Any = None


def any_process(condition: bool) -> bool:
    """Whether the condition holds on any process, agreed by all through their CPUs, so that no GPU waits."""
    global _control_group
    if world_size() == 1:
        return condition
    if _control_group is None:
        _control_group = dist.new_group(backend="gloo")
    flag = torch.tensor([int(condition)])
    dist.all_reduce(flag, dist.ReduceOp.MAX, group=_control_group)
    return bool(flag)


def agree_to_stop() -> bool:
    """Whether any process has received a signal to stop; all processes get the same answer."""
    stop = any_process(stop_requested())
    if stop:
        _agreed.set()
    return stop
