"""What is faster and not the figure: CPU kernels and their caches, BatchNorm folding, low precision.

The rest of the project calls these and knows nothing of kernels, tiles, layouts or caches.
"""
from lib.accelerate.inference import prepare_for_inference
from lib.accelerate.precision import AMP_DTYPES, autocast
from lib.accelerate.process import set_up_cpu
from lib.accelerate.swap import accelerate

__all__ = ["AMP_DTYPES", "accelerate", "autocast", "prepare_for_inference", "set_up_cpu"]
