"""LoRA (Hu et al., 2021): low-rank adapters in the linear layers of a text encoder, by the package peft.

A layer with the weight W (O, I) gets two matrices A (R, I) and B (O, R), of which B starts at zero, and computes
x Wᵀ + `SCALE` · x Aᵀ Bᵀ. W stays as it is. peft is needed for training only: a network without adapters takes
W + `SCALE` · B A as its weight. A state dict has the entries of such a layer under other names, which are peft's.
"""
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from utils import UserError

SCALE = 2   # LoRA's α / R
PACKAGE = "peft>=0.18"   # older versions cannot be imported with transformers 5
BASE, DOWN, UP = ".base_layer", ".lora_A.default.weight", ".lora_B.default.weight"   # W and bias, A, B


def adapted_layers(network: nn.Module, layers: nn.Module) -> list[str]:
    """The names of the layers of `network` that may have adapters: the linear ones inside its part `layers`."""
    inside = set(layers.modules())
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear) and module in inside]


def add_adapters(network: Any, layers: nn.Module, rank: int) -> None:
    """Gives each linear layer inside the `layers` of a network of transformers an adapter of the rank R, in place.

    Raises `UserError` if peft is not installed, or if there is no such layer.
    """
    if not (names := adapted_layers(network, layers)):
        raise UserError(f"--text_lora {rank}: the text encoder has no layers that could have adapters")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError(f"--text_lora {rank} needs the package peft, which trains the adapters: pip install --upgrade "
                        f'"{PACKAGE}"') from error
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=SCALE * rank, target_modules=names), network)


def is_adapter(name: str) -> bool:
    """Whether an entry of a state dict belongs to an adapter."""
    return name.endswith((DOWN, UP))


def layers_with_adapters(state: Iterable[str]) -> list[str]:
    """The names of the layers that have an adapter in a state dict."""
    return [name.removesuffix(DOWN) for name in state if name.endswith(DOWN)]


def beside_adapters(state: Mapping[str, Any], layers: Iterable[str]) -> dict[str, Any]:
    """A state dict without adapters, its entries named as in a network whose `layers` have some."""
    names = {f"{layer}.{entry}": f"{layer}{BASE}.{entry}" for layer in layers for entry in ("weight", "bias")}
    return {names.get(name, name): value for name, value in state.items()}


def with_adapters(state: Mapping[str, Tensor], layers: Iterable[str], rank: int) -> dict[str, Tensor]:
    """A state dict without adapters and those of the rank R in `layers`, whose A and B are on the meta device."""
    added = {}
    for layer in layers:
        outputs, inputs = state[f"{layer}.weight"].shape
        added[layer + DOWN] = torch.empty(rank, inputs, device="meta")
        added[layer + UP] = torch.empty(outputs, rank, device="meta")
    return {**beside_adapters(state, layers), **added}


def merge(state: Mapping[str, Tensor], layers: Iterable[str]) -> dict[str, Tensor]:
    """A state dict with the adapters of `layers` added to their weights; it must have the shapes of `with_adapters`."""
    merged = dict(state)
    for layer in layers:
        weight, a, b = (merged.pop(layer + part) for part in (BASE + ".weight", DOWN, UP))
        merged[f"{layer}.weight"] = (weight.double() + SCALE * (b.double() @ a.double())).to(weight.dtype)
        if f"{layer}{BASE}.bias" in merged:
            merged[f"{layer}.bias"] = merged.pop(f"{layer}{BASE}.bias")
    return merged
