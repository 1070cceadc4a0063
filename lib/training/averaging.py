"""An exponential moving average of a network's weights during training."""
from collections.abc import Iterator
from copy import deepcopy
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """A copy of `model` whose weights are averages a: a = w after the first update w, then a ← a·decay + w·(1 − decay).

    Running statistics (BatchNorm) are averaged like weights, integer buffers are copied. `network` is the copy, always
    in evaluation mode; make it before the model is compiled or wrapped. `updates` counts the updates so far.

    `torch.optim.swa_utils.AveragedModel` has the same arithmetic, but copies its counter to the device in each step,
    for which the host waits.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.network = deepcopy(model).eval().requires_grad_(False)
        self.average = get_ema_multi_avg_fn(decay)
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Adds the weights of `model` after an update to the average, without waiting for the device."""
        pairs = list(zip(tensors(self.network), tensors(model), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        if self.updates:
            self.average(*map(list, zip(*floats, strict=True)), self.updates)
            pairs = [pair for pair in pairs if not pair[0].is_floating_point()]
        for averaged, current in pairs:
            averaged.copy_(current)
        self.updates += 1


def tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers in the order of the modules."""
    return chain(model.parameters(), model.buffers())
