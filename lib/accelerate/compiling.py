"""The whole network through `torch.compile`, as one graph for one size of batch: for GPUs."""
from typing import Any

import torch
from torch import Tensor, nn

from utils import log


def compiled(model: nn.Module, device: torch.device, **options: Any) -> nn.Module:
    """The network as a training step calls it under `--compile`; `model` itself still computes uncompiled.

    The two share parameters and buffers. Call it before the model is wrapped (DDP). `options` are `torch.compile`'s.
    On CPUs it is `model` itself, which the log says: the kernels of `accelerate` are what is fast there, and a
    compiler cannot look into them.
    """
    if device.type == "cpu":
        log("--compile is for GPUs: on the CPU the network runs with the kernels of lib/accelerate, uncompiled")
        return model
    return torch.compile(model, dynamic=False, **options)


class WholeBatches(nn.Module):
    """A compiled network for evaluation, which meets one size of batch alone, so that one graph serves all.

    A batch that is smaller than one before it, as the last of a split, is filled up with its own last sample.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.size = network, 0

    def forward(self, *inputs: Tensor) -> Tensor:
        """Arguments of the network, each (B, …) -> what it returns, (B, …)"""
        batch = inputs[0].shape[0]
        self.size = max(self.size, batch)
        # Whole batches are copied, too: a tensor made in inference mode is of another kind, which another graph serves.
        filled = [torch.cat([x, x[-1:].expand(self.size - batch, *x.shape[1:])]) for x in inputs]
        return self.network(*filled)[:batch]
