"""What a training step costs a GPU, counted on a machine without one: `tools/benchmark.py count`."""
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lib.accelerate import accelerate, usable_amp
from lib.segmentation import build_model
from tools.costs import GPUS, Cost, Ledger, parts_of, stored_bytes
from tools.fake_gpu import GPU, FakeDevice, fake_gpu, without_numbers
from tools.workloads import make_batch, training_step
from utils import UserError, log


def count_step(args: Namespace) -> Ledger:
    """The ledger of one training step, the second of a run, with the flags of train.py and the GPU `args.gpu`.

    Raises `UserError` for `--compile`, whose kernels are not known before they are compiled.
    """
    if args.compile:
        raise UserError("count: --compile joins operators to kernels of its own, which are not counted: leave it out")
    args.amp = usable_amp(args.amp, GPU)
    model = accelerate(without_numbers(lambda: build_model(args)), GPU, args.channels_last).train()
    with fake_gpu() as device:
        device.to_gpu(model, empty=True)
        ledger = Ledger(gpu=GPUS[args.gpu], tf32=args.tf32, parts=parts_of(model))
        batch = make_batch(args, args.batch_size, GPU, model.reads_phrases)
        run, updater = training_step(model, batch, args, GPU)
        updater.update = ledger.in_phase("update", updater.update)   # type: ignore[method-assign]
        run()   # the first step also makes the optimiser's moments
        device.waiting_allowed = False
        with ledger, saved_for_backward(device, model) as saved:
            run()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        ledger.held = {"weights": bytes_of([*model.parameters(), *model.buffers()]), "gradients": bytes_of(trained),
                       "moments": bytes_of(list(updater.optimizer.state.values())), "saved": sum(saved.values())}
    return ledger


def bytes_of(tensors: Any) -> int:
    """The bytes of memory behind all tensors in lists and dicts."""
    return sum(stored_bytes(tensor) for tensor in tree_leaves(tensors) if isinstance(tensor, Tensor))


@contextmanager
def saved_for_backward(device: FakeDevice, model: torch.nn.Module) -> Iterator[dict[int, int]]:
    """Notes the bytes of each memory that autograd keeps between the forward and the backward pass, weights aside.

    A memory is counted once, whatever the number of tensors that look at it. What is computed again in the backward
    pass is not kept.
    """
    weights = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}
    alive = []   # so that no address is given twice

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage()._cdata
        if not device.in_backward and place not in weights and place not in saved:
            alive.append(tensor)
            saved[place] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def row(name: str, cost: Cost) -> str:
    """A line of a Markdown table."""
    return (f"| {name} | {cost.operators:,} | {cost.moved / 1e9:.2f} | {cost.flops / 1e12:.3f} | "
            f"{cost.seconds * 1e3:.2f} |")


def count(args: Namespace) -> dict[str, Any]:
    """Counts, prints a table and returns its figures as plain data."""
    ledger = count_step(args)
    log(f"A step of {args.model}, Swin {args.swin_type}, {args.img_size} px, batch {args.batch_size}, --amp "
        f"{args.amp}: counted, and the least time of each operator on {args.gpu} by its data sheet; nothing was "
        "measured.\n\n| | operators | GB moved | TFLOP | ms at least |\n|---|---|---|---|---|")
    figures: dict[str, Any] = {}
    for kind in ("phase", "part", "family"):
        for name, cost in ledger.by(kind).items():
            figures.setdefault(kind, {})[name] = vars(cost)
            log(row(f"{kind}: {name}", cost))
    log(row("all", ledger.total()))
    held = ledger.held
    log(f"\nMemory at least, MiB: {', '.join(f'{name} {size >> 20:,}' for name, size in held.items())}. Weights, "
        "AdamW's moments and what the forward pass saves for the backward pass are there at one time.")
    return figures | {"all": vars(ledger.total()), "held": held}
