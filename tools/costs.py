"""The operators of a computation: how many, the bytes that they move, their FLOPs, and the least time on a GPU.

A bound is no measurement: it takes each operator at a device's full memory bandwidth or its full arithmetic rate,
whichever takes longer, and neither launches nor anything else.
"""
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, shape_wrapper

aten = torch.ops.aten


@dataclass(frozen=True)
class Gpu:
    """Peaks of a data sheet: memory in TB/s, dense arithmetic in TFLOP/s with sums in float32."""

    memory: float
    half: float     # bfloat16 and float16, tensor cores
    tf32: float     # TF32, tensor cores
    single: float   # float32

    def seconds(self, moved: int, flops: int, dtype: torch.dtype, tf32: bool) -> float:
        """The least time of an operator that moves so many bytes and computes in `dtype`."""
        rate = self.half if dtype in (torch.bfloat16, torch.float16) else self.tf32 if tf32 else self.single
        return max(moved / (self.memory * 1e12), flops / (rate * 1e12))


# From NVIDIA's data sheets of H200 (SXM), H100 (SXM) and A100 (80 GB SXM), its white paper "Ada GPU Architecture" for
# the RTX 4090, and its data sheet of L4; where they give a rate with sparsity only, half of it.
GPUS = {
    "h200": Gpu(4.8, 989.5, 494.5, 67.0),
    "h100": Gpu(3.35, 989.5, 494.5, 67.0),
    "a100": Gpu(2.039, 312.0, 156.0, 19.5),
    "4090": Gpu(1.008, 165.2, 82.6, 82.6),
    "l4": Gpu(0.3, 121.0, 60.0, 30.3),
}


def convolution_backward_flops(gradient: list[int], x: list[int], weight: list[int], _bias: Any, _stride: Any,
                               _padding: Any, _dilation: Any, transposed: bool, _output_padding: Any, _groups: int,
                               wanted: list[bool], **_: Any) -> int:
    """FLOPs of the gradients of a convolution's input and weight, each as many as the convolution itself has.

    PyTorch's own formula ignores groups, of which ARC has one a sample.
    """
    places = math.prod((x if transposed else gradient)[2:])
    return 2 * x[0] * places * math.prod(weight) * (wanted[0] + wanted[1])


# For FlopCounterMode's `custom_mapping`.
FLOPS: dict[Any, Callable[..., int]] = {aten.convolution_backward: convolution_backward_flops}
FORMULAS = {**flop_registry, **{operator: shape_wrapper(formula) for operator, formula in FLOPS.items()}}

# Families of operators by the beginnings of their names; what is in none is pointwise.
FAMILIES = {
    "GEMM": ("mm", "addmm", "bmm", "baddbmm"),
    "convolution": ("convolution",),
    "attention": ("_scaled_dot_product",),
    "LayerNorm": ("native_layer_norm",),
    "BatchNorm": ("native_batch_norm", "_native_batch_norm", "cudnn_batch_norm", "_batch_norm", "batch_norm"),
    "copy": ("clone", "copy_", "cat", "stack", "constant_pad_nd", "roll", "slice_backward", "select_backward",
             "_reshape_copy", "split_with_sizes_copy", "repeat", "index", "embedding", "gather", "scatter", "unfold",
             "as_strided_scatter", "slice_scatter", "select_scatter"),
    "cast": ("_to_copy", "_foreach_copy"),
    "activation": ("gelu", "relu", "tanh", "sigmoid", "hard", "silu", "_softmax", "_log_softmax", "threshold",
                   "_safe_softmax", "softplus"),
    "reduction": ("sum", "mean", "amax", "amin", "max", "min", "linalg_vector_norm", "_foreach_norm", "var", "std",
                  "nll_loss", "native_dropout", "_adaptive_avg_pool"),
    "resize": ("upsample",),
    "update": ("_fused_adam", "_foreach"),
    "fill": ("zeros", "ones", "full", "fill", "new_zeros", "new_full", "new_ones", "zero_", "scalar_tensor", "arange",
             "rand", "bernoulli", "eye"),
}
ALLOCATIONS = ("empty", "new_empty", "detach", "_unsafe_view", "alias", "lift_fresh", "resize_", "set_",
               "_local_scalar")
GATHERS = {aten.embedding, aten.index_select, aten.index, aten.gather}   # read as much as they give
# These do not read what they write.
OVERWRITES = {aten.copy_, aten.zero_, aten.fill_, aten._foreach_copy_, aten._foreach_zero_}


def family_of(name: str) -> str:
    """The family of an operator, whose name is without namespace and overload."""
    found = [(len(start), family) for family, starts in FAMILIES.items() for start in starts if name.startswith(start)]
    return max(found)[1] if found else "pointwise"


def stored_bytes(tensor: Tensor) -> int:
    """The bytes of memory behind a tensor; an expanded one is stored once."""
    places = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or size == 0)
    return math.prod(places) * tensor.element_size()


def bytes_moved(func: Any, args: tuple, kwargs: dict, result: Any) -> int:
    """The bytes that an operator reads and writes: each tensor once each way."""
    written = {id(tensor): tensor for tensor in tree_leaves(result) if isinstance(tensor, Tensor)}
    read: dict[int, Tensor] = {}
    named = zip(func._schema.arguments, args, strict=False)
    for argument, value in [*named, *((a, kwargs[a.name]) for a in func._schema.arguments if a.name in kwargs)]:
        tensors = {id(tensor): tensor for tensor in tree_leaves(value) if isinstance(tensor, Tensor)}
        writes = argument.alias_info is not None and argument.alias_info.is_write
        if writes:
            written |= tensors
        if not (writes and func.overloadpacket in OVERWRITES):
            read |= tensors
    total = sum(map(stored_bytes, written.values()))
    return 2 * total if func.overloadpacket in GATHERS else total + sum(map(stored_bytes, read.values()))


@dataclass
class Cost:
    """A number of operators, the bytes that they move, their FLOPs, and the least time on the GPU asked for."""

    operators: int = 0
    moved: int = 0
    flops: int = 0
    seconds: float = 0.0

    def add(self, other: "Cost") -> None:
        for name in ("operators", "moved", "flops", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass
class Ledger(TorchDispatchMode):
    """Counts the operators that run inside it by phase, part of the network and family.

    Views and allocations are no operators here, as they launch nothing. `parts` names modules; what runs in none of
    them belongs to "rest". An operator of the backward pass belongs to the part whose forward pass it differentiates.
    """

    gpu: Gpu = GPUS["h200"]
    tf32: bool = True
    parts: dict[nn.Module, str] = field(default_factory=dict)
    phase: str = "forward"
    costs: dict[tuple[str, str, str], Cost] = field(default_factory=lambda: defaultdict(Cost))
    names: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    held: dict[str, int] = field(default_factory=dict)   # bytes of a training step (see tools.counting)

    def __post_init__(self) -> None:
        super().__init__()
        self.stack = ["rest"]
        self.spans: list[tuple[int, int, str]] = []   # autograd's numbers of the nodes made in a part
        self.begun: list[int] = []
        for module in self.parts:
            module.register_forward_pre_hook(self.enter)
            module.register_forward_hook(self.leave, always_call=True)

    def in_phase(self, phase: str, run: Callable[[], None]) -> Callable[[], None]:
        """`run`, whose operators belong to another phase."""
        def other_phase() -> None:
            before, self.phase = self.phase, phase
            run()
            self.phase = before
        return other_phase

    def enter(self, module: nn.Module, inputs: Any) -> None:
        self.stack.append(self.parts[module])
        self.begun.append(torch.autograd._get_sequence_nr())

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.spans.append((self.begun.pop(), torch.autograd._get_sequence_nr(), self.stack.pop()))

    def place(self) -> tuple[str, str]:
        """The phase and the part of the operator that runs."""
        node = torch._C._current_autograd_node()
        if node is None or len(self.stack) > 1:   # activations may be computed again inside the backward pass
            return ("backward" if node is not None else self.phase), self.stack[-1]
        number = node._sequence_nr()
        inside = [(last - first, part) for first, last, part in self.spans if first <= number < last]
        return "backward", min(inside)[1] if inside else "rest"

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._schema.name.split("::")[-1]
        if not func.is_view and not name.startswith(ALLOCATIONS) and func.namespace != "prim":
            self.note(func, name, args, kwargs, result)
        return result

    def note(self, func: Any, name: str, args: tuple, kwargs: dict, result: Any) -> None:
        """Adds one operator."""
        formula = FORMULAS.get(func.overloadpacket)
        flops = formula(*args, **kwargs, out_val=result) if formula else 0
        moved = bytes_moved(func, args, kwargs, result)
        dtype = next((x.dtype for x in tree_leaves(args) if isinstance(x, Tensor) and x.is_floating_point()),
                     torch.float32)
        phase, part = self.place()
        seconds = self.gpu.seconds(moved, flops, dtype, self.tf32)
        self.costs[phase, part, family_of(name)].add(Cost(1, moved, flops, seconds))
        self.names[name] += 1

    def total(self, **wanted: str) -> Cost:
        """The sum of the entries of a phase, part or family: total(family="cast")."""
        total = Cost()
        for key, cost in self.costs.items():
            if all(dict(zip(("phase", "part", "family"), key, strict=True))[name] == value
                   for name, value in wanted.items()):
                total.add(cost)
        return total

    def by(self, name: str) -> dict[str, Cost]:
        """The sums by "phase", "part" or "family", in the order of their first operator."""
        place = ("phase", "part", "family").index(name)
        return {value: self.total(**{name: value}) for value in dict.fromkeys(key[place] for key in self.costs)}


def parts_of(model: nn.Module) -> dict[nn.Module, str]:
    """The parts of a `ReferringSegmenter` that a ledger tells apart."""
    stages = list(model.backbone.stages)
    named: list[tuple[str, Iterable[nn.Module | None]]] = [
        ("text encoder", [model.text_encoder]),
        ("backbone, rest", [model.backbone]),
        ("Swin blocks", [block for stage in stages for block in stage.blocks]),
        ("fusion", [stage.fusion for stage in stages]),
        ("intra-scale", [part for stage in stages for part in (stage.intra_scale, stage.visual_gate)]),
        ("alignment", [stage.alignment for stage in stages]),
        ("cross-scale", [model.cross_scale]),
        ("decoder, rest", [model.decoder]),
        ("decoder, second convolutions", [level.conv2 for level in model.decoder.levels]),
    ]
    return {module: name for name, modules in named for module in modules if module is not None}
