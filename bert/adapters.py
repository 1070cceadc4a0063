"""LoRA (Hu et al., 2021): low-rank adapters in the linear layers of a text encoder, by the package peft.

A layer with the weight W (O, I) gets two matrices A (R, I) and B (O, R), of which B starts at zero, and computes
x Wᵀ + `SCALE` · x Aᵀ Bᵀ. W stays as it is. peft is needed for training only: a network without adapters takes weights
that have them as W + `SCALE` · B A.
"""
from typing import Any, cast

import torch
from torch import Tensor, nn

from utils import UserError

SCALE = 2   # LoRA's α / R
BASE, DOWN, UP = ".base_layer", ".lora_A.default.weight", ".lora_B.default.weight"   # peft's names: W and bias, A, B


def add_adapters(network: Any, layers: nn.Module, rank: int) -> None:
    """Gives each linear layer inside the `layers` of a network of transformers an adapter of the rank R, in place.

    Raises `UserError` if peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError(f"--text_lora {rank} needs the package peft, which trains the adapters: pip install "
                        "peft") from error
    inside = set(layers.modules())
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear) and module in inside]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=SCALE * rank, target_modules=names), network)


def is_adapter(name: str) -> bool:
    """Whether an entry of a state dict belongs to an adapter."""
    return name.endswith((DOWN, UP))


def fit_adapters(given: dict[str, Any], needed: dict[str, Tensor]) -> dict[str, Any]:
    """The entries of `given`, renamed and with their adapters added to the weights, as a network needs them.

    `needed` is the network's state dict, possibly on the meta device. Without adapters of the same shapes in it, those
    of `given` are added to the weights. Adapters that only the network has are not in the result. What does not fit
    stays under its name, so that a comparison with `needed` shows it.
    """
    adapters = [name for name in given if is_adapter(name)]
    if any(name not in needed or needed[name].shape != getattr(given[name], "shape", None) for name in adapters):
        given = dict(given)
        for down in (name for name in adapters if name.endswith(DOWN)):
            layer = down.removesuffix(DOWN)
            weight, a, b = (cast(Any, given.get(layer + part)) for part in (BASE + ".weight", DOWN, UP))
            target = needed.get(layer + ".weight", needed.get(layer + BASE + ".weight"))
            if target is not None and can_add(weight, a, b, target.shape):
                for part in (BASE + ".weight", DOWN, UP):
                    del given[layer + part]
                given[layer + ".weight"] = (weight.double() + SCALE * (b.double() @ a.double())).to(weight.dtype)
        given = {name if name in needed else name.replace(BASE, ""): value for name, value in given.items()}
    return {name if name in needed or with_base(name) not in needed else with_base(name): value
            for name, value in given.items()}


def with_base(name: str) -> str:
    """The name of a layer's weight or bias beside an adapter."""
    layer, _, entry = name.rpartition(".")
    return f"{layer}{BASE}.{entry}"


def can_add(weight: Any, a: Any, b: Any, shape: torch.Size) -> bool:
    """Whether W, A and B are matrices of numbers whose shapes belong together, and W's is `shape`."""
    return (all(isinstance(part, Tensor) and part.dim() == 2 and part.is_floating_point()
                and part.layout is torch.strided and part.device.type == "cpu" for part in (weight, a, b))
            and weight.shape == shape == (len(b), a.shape[1])
            and len(a) == b.shape[1] <= sum(weight.shape))   # a few bytes may claim a huge rank
