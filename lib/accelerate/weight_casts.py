"""Low precision on GPUs: the weights of many layers are rounded by one operator, as are their gradients widened.

Autocast rounds each weight and bias by an operator of its own in each forward pass and widens its gradient by another
one, a thousand in a step, each of which is a launch. The numbers of linear layers and convolutions are the same.
"""
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.autograd.function import once_differentiable

from lib.accelerate.precision import products_dtype

GROUP = 2 ** 24   # numbers that are rounded together, so that several GPUs exchange gradients before all are known
Pack = Sequence[Tensor]   # tensors that become one, joined along their first axis


class Borrower(nn.Module):
    """A layer that computes with the rounded parameters that it is lent, if any."""

    lent: list[Tensor] | None = None

    def packs(self) -> list[Pack]:
        """The parameters that the layer borrows; it is lent one tensor for each pack."""
        own = getattr(self, "weight", None), getattr(self, "bias", None)
        return [[parameter] for parameter in own if parameter is not None]


class CastLinear(Borrower, nn.Linear):
    """A linear layer: (…, I) -> (…, O)."""

    def forward(self, x: Tensor) -> Tensor:
        if self.lent is None:
            return super().forward(x)
        return nn.functional.linear(x, *self.lent)


class CastConv2d(Borrower, nn.Conv2d):
    """A convolution: (B, I, H, W) -> (B, O, H', W')."""

    def forward(self, x: Tensor) -> Tensor:
        if self.lent is None:
            return super().forward(x)
        weight, *bias = self.lent
        return self._conv_forward(x, weight, bias[0] if bias else None)


class CastLayerNorm(Borrower, nn.LayerNorm):
    """A LayerNorm that under autocast reads and writes the precision of the products: (…, C) -> same.

    Autocast gives it a map in float32, and takes one in float32 that the next layer rounds. The kernel computes in
    float32 whatever it reads, so that only the weight and the bias are rounded in addition.
    """

    def forward(self, x: Tensor) -> Tensor:
        dtype = products_dtype(x)
        if dtype == x.dtype and not torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        # Nothing is lent where activations are computed again in the backward pass.
        tensors = self.lent or [parameter.to(dtype) for pack in self.packs() for parameter in pack]
        weight, bias, *_ = [*tensors, None, None]
        with torch.autocast(x.device.type, enabled=False):
            return nn.functional.layer_norm(x.to(dtype), self.normalized_shape, weight, bias, self.eps)


class WeightCasts:
    """Lends its layers rounded weights for a forward pass: `with casts.lent(): model(…)`, inside autocast.

    Layers that `accelerate` has not made a `Borrower` stay with autocast, and so does a compiled network, whose
    compiler joins the casts with other work.
    """

    def __init__(self, model: nn.Module):
        compiled = any(isinstance(module, OptimizedModule) for module in model.modules())
        self.groups: list[list[Borrower]] = []
        size = GROUP
        borrowed: set[Tensor] = set()
        for module in () if compiled else model.modules():
            if not isinstance(module, Borrower):
                continue
            parameters = [parameter for pack in module.packs() for parameter in pack]
            if not parameters or parameters[0] in borrowed:   # by the module around it
                continue
            if size >= GROUP:
                self.groups.append([])
                size = 0
            self.groups[-1].append(module)
            borrowed.update(parameters)
            size += sum(parameter.numel() for parameter in parameters)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """A context in which the layers have rounded weights, if autocast is on and gradients are wanted."""
        try:
            for group in self.groups:
                kind = group[0].packs()[0][0].device.type
                if torch.is_autocast_enabled(kind) and torch.is_grad_enabled():
                    lend(group, torch.get_autocast_dtype(kind))
            yield
        finally:
            for group in self.groups:
                for layer in group:
                    layer.lent = None


def lend(layers: Sequence[Borrower], dtype: torch.dtype) -> None:
    """Rounds the packs of the layers; those that are frozen get no gradient."""
    wanted = [(layer, pack) for layer in layers for pack in layer.packs()]
    rounded: dict[int, Tensor] = {}
    for trained in (False, True):
        places = [place for place, (_, pack) in enumerate(wanted) if any(x.requires_grad for x in pack) == trained]
        packs = [wanted[place][1] for place in places]
        if trained and packs:
            sizes = tuple(len(pack) for pack in packs)
            tensors = RoundTogether.apply(dtype, sizes, *(parameter for pack in packs for parameter in pack))
        else:
            tensors = round_together(dtype, packs)
        rounded.update(zip(places, tensors, strict=True))
    for place, (layer, _) in enumerate(wanted):
        layer.lent = [*(layer.lent or []), rounded[place]]


def round_together(dtype: torch.dtype, packs: Sequence[Pack]) -> list[Tensor]:
    """One tensor for each pack, in another precision, by one operator."""
    rounded, places = [], []
    for pack in packs:
        if len(pack) == 1:
            rounded.append(torch.empty_like(pack[0], dtype=dtype, requires_grad=False))   # laid out in memory alike
            places.append(rounded[-1])
        else:
            lengths = [len(tensor) for tensor in pack]
            rounded.append(pack[0].new_empty(sum(lengths), *pack[0].shape[1:], dtype=dtype, requires_grad=False))
            places.extend(rounded[-1].split(lengths))
    if places:
        with torch.no_grad():
            torch._foreach_copy_(places, [tensor for pack in packs for tensor in pack])
    return rounded


class RoundTogether(torch.autograd.Function):
    """`round_together` with its gradient, in the precision of each parameter; `sizes` are those of the packs."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, sizes: tuple[int, ...], *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.dtype, ctx.sizes = parameters[0].dtype, sizes
        ctx.lengths = [len(parameter) for parameter in parameters]
        ctx.set_materialize_grads(False)
        remaining = iter(parameters)
        return tuple(round_together(dtype, [[next(remaining) for _ in range(size)] for size in sizes]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        lengths = iter(ctx.lengths)
        parts: list[Tensor | None] = []
        for gradient, size in zip(gradients, ctx.sizes, strict=True):
            own = [next(lengths) for _ in range(size)]
            parts.extend([None] * size if gradient is None else [gradient] if size == 1 else gradient.split(own))
        wide = iter(round_together(ctx.dtype, [[part] for part in parts if part is not None]))
        return None, None, *(None if part is None else next(wide) for part in parts)
