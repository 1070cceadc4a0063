"""Seeding, saving and restoring of every random generator that training draws from."""
import os
import random
from typing import Any

import numpy as np
import torch

from utils import rank


def seed_everything(seed: int, deterministic: bool = False) -> None:
    """Seeds Python, NumPy and torch, each process with a seed of its own.

    `deterministic` makes torch choose algorithms that give the same bits every time. Operations without such an
    algorithm (some on GPUs, none that this project uses on CPUs) warn.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    random.seed(seed + rank())
    np.random.seed((seed + rank()) % 2 ** 32)
    torch.manual_seed(seed + rank())


def generator_states(device: torch.device) -> dict[str, Any]:
    """The state of every generator that training draws from, as plain data and tensors."""
    kind, internal, gauss = random.getstate()
    of_numpy: Any = np.random.get_state()   # a tuple, although NumPy's annotations also allow a dict
    name, keys, position, has_gauss, cached = of_numpy
    states = {"python": [kind, list(internal), gauss],
              "numpy": [name, keys.tolist(), position, has_gauss, cached], "torch": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore_generators(states: dict[str, Any], device: torch.device) -> None:
    """Restores every generator from the result of `generator_states`."""
    kind, internal, gauss = states["python"]
    random.setstate((kind, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])
