"""What a training step costs a GPU, counted on a machine without one: `tools/benchmark.py count`."""
from argparse import Namespace
from typing import Any

from lib.accelerate import accelerate, usable_amp
from lib.segmentation import build_model
from tools.costs import GPUS, Cost, Ledger, parts_of
from tools.fake_gpu import GPU, fake_gpu, without_numbers
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
        with ledger:
            run()
    return ledger


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
    return figures | {"all": vars(ledger.total())}
