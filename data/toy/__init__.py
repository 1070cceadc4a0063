"""The toy data set: what its scenes and sentences are, how they are painted, how they are written."""
from data.toy.writer import is_toy, make_toy_rrsisd

__all__ = ["is_toy", "make_toy_rrsisd"]
