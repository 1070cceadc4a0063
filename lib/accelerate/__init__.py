"""Faster implementations of the network's modules: CPU kernels and their caches, BatchNorm folding, low precision.

The rest of the project calls these functions and does not depend on kernels, tiles, memory layouts or caches.
"""
from lib.accelerate.compiling import WholeBatches, compiled
from lib.accelerate.inference import prepare_for_inference
from lib.accelerate.precision import AMP_DTYPES, autocast, usable_amp
from lib.accelerate.process import set_up, set_up_cuda
from lib.accelerate.swap import accelerate
from lib.accelerate.weight_casts import WeightCasts

__all__ = ["AMP_DTYPES", "WeightCasts", "WholeBatches", "accelerate", "autocast", "compiled", "prepare_for_inference",
           "set_up", "set_up_cuda", "usable_amp"]
