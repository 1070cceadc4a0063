"""The process group: how the processes of a run connect and disconnect."""
import os
import time
import uuid
from datetime import timedelta

import torch
import torch.distributed as dist

from distributed.devices import choose_device, local_rank, refuse_shared_gpu
from utils import UserError


def init_processes(device: str | None, local_rank_flag: int, timeout_s: float = 600) -> torch.device:
    """Joins the process group of a launcher, if there is one, and returns this process's device (`choose_device`).

    `torchrun` and `torch.distributed.launch` set the variables RANK and WORLD_SIZE. NCCL connects GPUs, Gloo connects
    CPUs. A process that waits for another one longer than `timeout_s` gives up. Raises `UserError` for a GPU that does
    not exist, or that another process has.
    """
    chosen = choose_device(device, local_rank(local_rank_flag))
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        store, number, processes = _fresh_store(timeout := timedelta(seconds=timeout_s))
        if chosen.type == "cuda":
            refuse_shared_gpu(chosen, store)
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=timeout, store=store, rank=number,
                                world_size=processes)
    return chosen


def _fresh_store(timeout: timedelta) -> tuple[dist.Store, int, int]:
    """A store for the processes of this start, this process's rank, and the number of processes.

    torchrun keeps its store over restarts, and Gloo would find the addresses of ended processes in it. The first
    process therefore chooses a new prefix, sends it to each process that asks, and waits for the answers of all others,
    because an ended process may have asked, too.
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


def end_processes() -> None:
    """Destroys the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
