"""Compilation of the whole network with `torch.compile` on GPUs, as one graph for one batch size."""
from typing import Any, cast

import torch
from torch import Tensor, nn

from utils import log


def compiled(model: nn.Module, device: torch.device, **options: Any) -> nn.Module:
    """The network as a training step calls it under `--compile`; `model` itself still computes uncompiled.

    The two share parameters and buffers. Call it before the model is wrapped (DDP). `options` are `torch.compile`'s.
    On a CPU the function returns `model` itself and logs a line: the kernels of `accelerate` are faster there, and
    the compiler cannot look into them.
    """
    if device.type == "cpu":
        log("--compile is for GPUs: on the CPU the network runs with the kernels of lib/accelerate, uncompiled")
        return model
    return cast(nn.Module, torch.compile(model, dynamic=False, **options))


class WholeBatches(nn.Module):
    """A compiled network for evaluation that always receives the same batch size, so that one graph serves all batches.

    A batch smaller than an earlier one, such as the last of a split, is padded with copies of its own last sample.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.size = network, 0

    def forward(self, *inputs: Tensor) -> Tensor:
        """The network's arguments, each (B, …) -> its output (B, …)."""
        batch = inputs[0].shape[0]
        self.size = max(self.size, batch)
        # Full batches are copied as well: a tensor made in inference mode would need a second graph.
        filled = [torch.cat([x, x[-1:].expand(self.size - batch, *x.shape[1:])]) for x in inputs]
        return self.network(*filled)[:batch]
