"""A GPU without numbers: on a machine that has none, every operator runs with CUDA's rules for devices and precisions.

Tensors of PyTorch's FakeTensorMode have shapes, strides, types and devices, but no values. Reading a value, or mixing
devices, is an error there as it is slow or wrong on a GPU. Memory is not used, so that a base network takes seconds.
"""
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from transforms import image_statistics
from utils import UserError

GPU, META = torch.device("cuda", 0), torch.device("meta")
aten = torch.ops.aten


class WaitingError(Exception):
    """A step copied a tensor from the GPU, or to it without `non_blocking`, for which the program would wait."""


class FakeDevice(TorchDispatchMode):
    """Lets autograd run the backward pass of fake CUDA tensors on the host, and refuses copies that wait.

    PyTorch's C++ library asks for a tensor's device. Autograd notes it in each node, and would start threads and
    streams of a GPU for it: it is told another one, that of tensors without data. Autocast is told the GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waiting_allowed = True
        self.in_backward = self.in_function = self.noting = False
        self.produced: set[int] = set()       # tensors of the last operator, for which autograd makes a node
        self.leaves: list[Any] = []           # autograd's nodes of the parameters, which it makes again once they die

    def to_gpu(self, model: nn.Module, empty: bool = False) -> nn.Module:
        """Moves a network to the fake GPU; one `without_numbers` is moved as `empty`."""
        model = model.to_empty(device=GPU) if empty else model.to(GPU)
        self.noting = True
        with torch.enable_grad():
            for parameter in model.parameters():
                needed = parameter.requires_grad
                self.leaves.append(parameter.requires_grad_().view_as(parameter).grad_fn.next_functions[0][0])
                parameter.requires_grad_(needed)
        self.noting = False
        return model

    def run_backward(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Autograd's engine, during which every tensor is said to be where its node is."""
        def engine(*args: Any, **kwargs: Any) -> Any:
            self.in_backward = True
            try:
                return run(*args, **kwargs)
            finally:
                self.in_backward = False
        return engine

    def apply_function(self, apply: Callable[..., Any]) -> Any:
        """`torch.autograd.Function.apply`: its nodes are made after its forward pass, which has no gradients."""
        def applied(function: Any, *args: Any) -> Any:
            self.in_function = True
            try:
                return apply.__get__(None, function)(*args)
            finally:
                self.in_function = False
        return classmethod(applied)

    def device_of(self, tensor: Tensor) -> torch.device:
        """The answer to the C++ library."""
        with_gradients = torch.is_grad_enabled()
        if self.noting or (self.in_function and with_gradients) or (self.in_backward and not with_gradients):
            return META
        return META if id(tensor) in self.produced and tensor.grad_fn is None else tensor.device

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.ops.prim.device.default:
            return self.device_of(args[0])
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == META:   # made in C++ like another tensor
            kwargs["device"] = GPU
        if not self.waiting_allowed and waits(func, args, kwargs):
            raise WaitingError(f"{func} between a GPU and the host")
        result = func(*args, **kwargs)
        self.produced = set()
        if torch.is_grad_enabled() and func is not aten.detach.default and any(
                isinstance(x, Tensor) and x.requires_grad for x in tree_leaves((args, kwargs))):
            self.produced = {id(x) for x in tree_leaves(result) if isinstance(x, Tensor)}
        return result


def waits(func: Any, args: tuple, kwargs: dict) -> bool:
    """Whether an operator copies between the devices and the host waits for it."""
    if func.overloadpacket is aten._to_copy:
        target = kwargs.get("device")
        return target is not None and target.type != args[0].device.type and not kwargs.get("non_blocking")
    if func.overloadpacket is aten.copy_:
        # A single number of the host is a kernel's argument.
        return args[0].device.type != args[1].device.type and args[1].dim() > 0 and not any(args[2:])
    return False


def fused_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
                    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False) -> Tensor:
    """`scaled_dot_product_attention` by the operator that a GPU chooses where a mask is added."""
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, float("-inf"))
        if torch.is_autocast_enabled("cuda"):
            attn_mask = attn_mask.to(torch.get_autocast_dtype("cuda"))
        attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    if torch.is_autocast_enabled("cuda"):
        query, key, value = (x.to(torch.get_autocast_dtype("cuda")) for x in (query, key, value))
    return aten._scaled_dot_product_efficient_attention(query, key, value, attn_mask, True, dropout_p, is_causal,
                                                        scale=scale)[0]


def without_numbers(make: Callable[[], nn.Module]) -> nn.Module:
    """The network that `make` builds, without initial values, which take long; see `to_gpu`."""
    with torch.device("meta"):
        return make()


@cache
def needs_driver() -> bool:
    """Whether this PyTorch has fake tensors of a GPU only beside a GPU's driver: 2.8 does, 2.14 needs none."""
    real = torch.ones(2)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            real.to(GPU)
    except RuntimeError:
        return True
    return False


@contextmanager
def fake_gpu() -> Iterator[FakeDevice]:
    """A context in which tensors of the device `GPU` can be made and computed with, gradients included.

    It yields the mode whose `waiting_allowed` decides whether copies that wait are errors. Networks may be built before
    it, on the CPU, and moved inside. Each tensor that is read raises an error of FakeTensorMode. Raises `UserError` if
    this PyTorch `needs_driver`.
    """
    if needs_driver():
        raise UserError(f"PyTorch {torch.__version__} counts for a GPU only beside a GPU's driver; PyTorch 2.14 needs "
                        "none")
    with ExitStack() as stack:
        stack.callback(image_statistics.cache_clear)
        # PyTorch turns autocast and loss scaling off where there is no GPU, and C++ chooses attention by the device.
        stack.enter_context(patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False))
        stack.enter_context(patch("torch.cuda.is_bf16_supported", lambda *_, **__: True))
        foreach = torch.utils._foreach_utils   # its operators serve classes that it knows
        stack.enter_context(patch.object(foreach, "_foreach_supported_types",
                                         [*foreach._foreach_supported_types, FakeTensor]))
        # `Module.to` would exchange fake parameters, which have references.
        stack.enter_context(patch("torch.utils.swap_tensors", lambda old, new: setattr(old, "data", new.data)))
        stack.enter_context(patch.object(F, "scaled_dot_product_attention", fused_attention))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        device = stack.enter_context(FakeDevice())
        stack.enter_context(patch.object(torch.autograd, "_engine_run_backward",
                                         device.run_backward(torch.autograd._engine_run_backward)))
        function = torch.autograd.Function
        stack.enter_context(patch.object(function, "apply", device.apply_function(vars(function)["apply"])))
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        yield device

