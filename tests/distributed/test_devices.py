"""The GPU of each process: by its number, or the only one that it sees, and never one that another process has."""
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from distributed import local_rank
from distributed.devices import choose_device, refuse_shared_gpu
from utils import UserError


@pytest.fixture
def gpus(monkeypatch):
    """Makes this process see so many GPUs: gpus(2)."""
    def see(number: int, uuid: str = "GPU-1") -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=uuid))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")
    return see


@pytest.mark.parametrize(("visible", "number", "asked", "chosen"), [
    (4, 3, None, "cuda:3"), (4, 3, "cuda", "cuda:3"), (4, 3, "cuda:0", "cuda:3"), (0, 3, None, "cpu"),
    (1, 3, None, "cuda:0"), (1, 3, "cuda", "cuda:0"), (4, 3, "cpu", "cpu"),
])
def test_a_process_takes_the_gpu_of_its_number_or_the_only_one(gpus, visible, number, asked, chosen):
    gpus(visible)
    assert str(choose_device(asked, number)) == chosen


def test_a_gpu_that_does_not_exist_is_refused(gpus):
    gpus(2)
    with pytest.raises(UserError, match="2 usable GPUs"):
        choose_device(None, 2)


def test_a_process_that_an_older_launcher_calls_alone_is_the_first(gpus):
    gpus(2)
    assert str(choose_device(None, local_rank(-1))) == "cuda:0"


def test_two_processes_with_one_gpu_are_refused(gpus):
    store = dist.HashStore()
    for uuid in ("GPU-1", "GPU-2"):
        gpus(1, uuid)
        refuse_shared_gpu(torch.device("cuda", 0), store)
    with pytest.raises(UserError, match="has this process's GPU already"):
        refuse_shared_gpu(torch.device("cuda", 0), store)
