"""Compiled training steps under DDP with averaged weights; says how often the network was compiled.

It is started with the variables that launchers set:

    compiled_steps.py STEPS

A program of its own, since autograd's threads, which compiled code starts, stop a process from forking.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

import distributed
from lib.accelerate import accelerate, compiled
from lib.evaluation.metrics import evaluate
from lib.segmentation import ModelConfig, build
from lib.training.averaging import WeightAverage
from lib.training.optimizer import freeze_text, make_optimizer
from lib.training.update_step import Updater
from tests.accelerate.test_compiling import CUDA, eval_batches
from tests.conftest import TEXT, make_inputs

SIZE_PX = 32


def main(steps: int) -> None:
    """Trains with a validation every 25 steps, whose last batch is smaller and which computes uncompiled."""
    device = distributed.init_processes("cpu", 0)
    torch.manual_seed(0)
    network = build(ModelConfig("rmsin", "nano", 4, SIZE_PX, (1, 1, 1, 1), 0.0, TEXT))
    before = torch.cat([p.detach().flatten() for p in network.parameters()])
    freeze_text(network, 2, True)
    average = WeightAverage(accelerate(network, CUDA), 0.9)
    # DDP cuts the one graph between its buckets of gradients, so that their exchange overlaps the backward pass.
    trained = DistributedDataParallel(compiled(network, CUDA, backend="eager", fullgraph=True), broadcast_buffers=False)
    optimizer, schedule = make_optimizer(network, 1e-4, 0.01, steps, warmup_iterations=10)
    updater = Updater(trained, optimizer, schedule, device)
    for step in range(steps):
        if step % 25 == 0:
            for evaluated in (network, average.network):
                evaluate(evaluated, eval_batches(SIZE_PX, 2, 1), device)
        trained.train()
        updater.backward(updater.forward(*make_inputs(2, SIZE_PX)).square().mean())
        average.update(network)
    after, averaged = (torch.cat([p.detach().flatten() for p in each.parameters()])
                       for each in (network, average.network))
    print(f"{counters['stats']['unique_graphs']} graph in {schedule.last_epoch} steps, {int(updater.bad_updates)} bad, "
          f"trained: {not torch.equal(before, after)}, averaged: {not torch.equal(averaged, after)}")
    distributed.end_processes()


if __name__ == "__main__":
    main(int(sys.argv[1]))
