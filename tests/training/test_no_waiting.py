"""A training step never waits for a GPU: nothing of what it computes is read, or copied from host memory, on the way.

Whatever a GPU's program would wait for is noted with the step in which it happens; on a CPU, where tests run, the same
operations are called. Only the steps that a log line follows may read.
"""
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lib.accelerate.threads import FixedThreads
from lib.training.epoch import train_one_epoch
from lib.training.masked_pass import Disturbance
from lib.training.optimizer import freeze_text, make_optimizer
from lib.training.state import Progress, TrainingState
from lib.training.update_step import Updater
from tests.conftest import TEXT, make_inputs

pytestmark = pytest.mark.usefixtures("narrow_nano")

aten = torch.ops.aten
CPU = torch.device("cpu")
OPERATIONS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten._unique2}   # that are read
# By Python's names: what reads a tensor, and what copies Python's numbers or a host's array to the device. Not
# Tensor.numpy, which a GPU's tensors do not have.
CALLS = {Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.__bool__, Tensor.__int__, Tensor.__float__,
         Tensor.new_tensor, torch.tensor, torch.as_tensor, torch.from_numpy}


class NotedOperations(TorchDispatchMode):
    """Calls `note` with each operation that waits, also one of a backward pass."""

    def __init__(self, note):
        super().__init__()
        self.note = note

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        packet = func.overloadpacket
        copied = packet is aten._to_copy and (kwargs or {}).get("device") not in (None, args[0].device)
        if packet in OPERATIONS or (copied and not kwargs.get("non_blocking")):
            self.note(str(packet))
        return func(*args, **(kwargs or {}))


class NotedCalls(TorchFunctionMode):
    """Calls `note` with each call that waits, also one that does nothing on a CPU."""

    def __init__(self, note):
        super().__init__()
        self.note = note

    def __torch_function__(self, func, types, args=(), kwargs=None):
        # A device that is named is another one; one that is passed on is where the tensor is.
        moved = func is Tensor.to and any(isinstance(x, str) or x == torch.device("meta") for x in args[1:])
        if func in CALLS or (moved and not (kwargs or {}).get("non_blocking")):
            self.note(func.__name__)
        return func(*args, **(kwargs or {}))


class Batches(list):
    """Batches that are loaded already, as train.py uses a loader."""

    batch_sampler = SimpleNamespace()
    dataset = SimpleNamespace(ref_of=lambda index: {"ref_id": index})
    problems = ()


class StateOnAGpu(TrainingState):
    """The state of a run whose losses are read as seldom as on a GPU."""

    def __init__(self, **fields):
        vars(self).update(fields)

    def look_is_due(self) -> bool:
        return self.log_is_due()


def waits(nano, amp: str = "off", accumulate: int = 1, tolerated: int = 0, model: str = "rmsin",
          disturb: Disturbance | None = None) -> dict[int, set[str]]:
    """{step: what it waits for} of four steps of train.py as on a GPU, with a log line after each second."""
    network = nano(model)
    freeze_text(network, 2, True)
    optimizer, schedule = make_optimizer(network, 1e-4, 0.01, 10, warmup_iterations=3)
    updater = Updater(network, optimizer, schedule, CPU, amp, accumulate, skip_bad=tolerated > 0,
                      passes=2 if disturb else 1)
    args = SimpleNamespace(batch_size=2, skip_nonfinite=tolerated, print_freq=2 // accumulate, save_every=0, epochs=2,
                           accumulate=accumulate, loss="ce:0.9,dice:0.1")
    state = StateOnAGpu(updater=updater, schedule=schedule, progress=Progress(), device=CPU, model=network, args=args,
                        batches=4, threads=FixedThreads(), average=None, disturb=disturb)
    image, token_ids, token_mask = make_inputs(2, 64)
    batch = {"image": (image * 50 + 120).clamp(0, 255).byte(), "token_ids": token_ids, "token_mask": token_mask,
             "target": torch.ones(2, 64, 64, dtype=torch.uint8), "index": torch.arange(2),
             "problems": []}
    found: dict[int, set[str]] = {}

    def note(what: str) -> None:
        found.setdefault(state.progress.step, set()).add(what)

    train_one_epoch(state, Batches([batch] * accumulate), args)   # constants go to the device once
    state.progress.next_epoch()
    with NotedOperations(note), NotedCalls(note):
        train_one_epoch(state, Batches([batch] * 4), args)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("options", [
    {}, {"amp": "bf16", "tolerated": 1, "model": "lavt"}, {"amp": "fp16", "model": "lavt"},
    {"disturb": True, "model": "lavt"}, {"accumulate": 2, "model": "lavt"},
], ids=["float32", "bf16, skipping", "fp16", "two passes", "two batches an update"])
def test_a_step_waits_for_nothing_between_log_lines(nano, tokenizer, options):
    if "disturb" in options:
        options = {**options, "disturb": Disturbance(tokenizer)}
        options["disturb"].vocabulary = TEXT["vocab_size"]   # the nano network's
    found = waits(nano, **options)
    assert set(found) == {2, 4}, found   # where the log line is made
    assert set().union(*found.values()) <= {"item", "aten._local_scalar_dense"}


@pytest.mark.slow
@pytest.mark.parametrize("read", [
    lambda loss: loss.item(), lambda loss: bool(loss > 0), lambda loss: loss.cpu(), lambda loss: loss.to("cpu"),
    lambda loss: loss.nonzero(), lambda loss: loss.new_tensor([0.9, 1.1]), lambda loss: loss.to("meta"),
    lambda loss: loss.register_hook(lambda gradient: print(gradient.item())),
], ids=["item", "bool", "cpu", "to the cpu", "nonzero", "from a list", "to another device", "in the backward pass"])
def test_a_read_inside_the_step_is_found(nano, read, monkeypatch):
    backward = Updater.backward
    monkeypatch.setattr(Updater, "backward", lambda self, loss: (read(loss), backward(self, loss))[1])
    assert set(waits(nano, model="lavt")) == set(range(5))
