"""The device of a process: what is said when a driver is too old for this PyTorch, and Apple's GPUs."""
from argparse import Namespace

import pytest
import torch

from args import get_parser
from distributed import driver
from distributed.devices import choose_device
from lib.accelerate import set_up
from lib.training.update_step import Updater
from utils import UserError

CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Sat Aug  5 20:00:00 UTC 2023\nGCC version:  gcc 12.2.0\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (dvs-builder)\n"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Makes this a machine with a driver's file and a PyTorch for CUDA: machine(text of the file or None, CUDA)."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)

    def make(said: str | None, cuda: str | None = "13.0", usable: bool = False, smi: str | None = None) -> None:
        if said is not None:
            (tmp_path / "version").write_text(said)
        if smi is not None:
            (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{smi}\n")
            (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}")
        monkeypatch.setattr(driver, "DRIVER_FILE", tmp_path / "version")
        monkeypatch.setattr(torch, "__version__", "2.14.1+cu130")
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: int(usable))
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    return make


@pytest.mark.parametrize("said", [CLOSED, OPEN])
def test_a_driver_that_is_too_old_is_said_in_one_line_with_the_command_that_helps(machine, said):
    machine(said.format("535.104.05"))
    with pytest.raises(UserError) as refusal:
        choose_device(None, 0)
    assert str(refusal.value) == (
        "no GPU can be used: this PyTorch 2.14.1 is built for CUDA 13.0 (driver 580 or newer), and this machine has "
        'the NVIDIA driver 535.104.05. Give pip install "torch<2.11" "torchvision<0.26" for drivers from 525 on, '
        "or update the driver. --device cpu computes without a GPU; docs/troubleshooting.md lists drivers and builds")


def test_device_cpu_goes_on_beside_such_a_driver(machine):
    machine(CLOSED.format("535.104.05"))
    assert choose_device("cpu", 0) == torch.device("cpu")


def test_a_driver_of_nvidia_smi_alone_is_read(machine):
    machine(None, smi="echo 550.54.14")
    with pytest.raises(UserError, match=r"the NVIDIA driver 550\.54\.14\."):
        choose_device(None, 0)


def test_a_driver_that_does_not_say_its_version_is_refused_too(machine):
    machine(None, smi="exit 9")
    with pytest.raises(UserError, match="the NVIDIA driver of unknown version"):
        choose_device(None, 0)


def test_a_driver_older_than_cuda_12_is_to_be_updated(machine):
    machine(CLOSED.format("470.82.01"), cuda="12.8")
    with pytest.raises(UserError, match=r"\(driver 525 or newer\).*Update the driver to 525 or newer"):
        choose_device(None, 0)


def test_a_driver_that_is_new_enough_has_another_cause(machine):
    machine(CLOSED.format("580.65.06"))
    with pytest.raises(UserError, match="See whether nvidia-smi lists a GPU"):
        choose_device(None, 0)


@pytest.mark.parametrize("given", [
    {"said": None},                                            # a machine without a driver
    {"said": CLOSED.format("535.104.05"), "cuda": None},       # PyTorch for the CPU or for ROCm
])
def test_other_machines_compute_on_the_cpu_as_before(machine, given):
    machine(**given)
    assert choose_device(None, 0) == torch.device("cpu")


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_hidden_gpus_are_the_users_choice(machine, monkeypatch, hidden):
    machine(CLOSED.format("535.104.05"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert choose_device(None, 0) == torch.device("cpu")


def test_a_usable_gpu_is_chosen(machine):
    machine(CLOSED.format("580.65.06"), usable=True)
    assert choose_device(None, 0) == torch.device("cuda:0")


def test_apples_gpu_is_chosen_by_name_and_computes_in_float32(machine, monkeypatch, capsys):
    machine(None)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    flags = get_parser().parse_args(["--device", "mps", "--amp", "bf16"])
    device = choose_device(flags.device, 0)
    set_up(device, flags)
    assert (device.type, flags.amp, flags.pin_mem) == ("mps", "off", False)
    said = capsys.readouterr().out
    assert "--amp bf16: this computes in float32" in said and "have not been measured" in said


def test_a_run_on_apples_gpu_adds_up_its_loss_without_float64(monkeypatch):
    sizes = []
    monkeypatch.setattr(torch, "zeros", lambda *size, dtype=torch.float32, device: sizes.append(dtype))
    optimizer = Namespace(param_groups=[])
    Updater(torch.nn.Identity(), optimizer, None, torch.device("mps"))
    assert torch.float64 not in sizes
    Updater(torch.nn.Identity(), optimizer, None, torch.device("cpu"))
    assert torch.float64 in sizes


def test_apples_gpu_is_refused_where_there_is_none_and_to_several_processes(machine, monkeypatch):
    machine(None)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device mps: this PyTorch finds no GPU of Apple's"):
        choose_device("mps", 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="several processes cannot share Apple's GPU"):
        choose_device("mps", 0)
