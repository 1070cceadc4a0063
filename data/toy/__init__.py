"""The toy data set: its scenes and sentences, how they are painted, and how they are written."""
from data.toy.writer import is_toy, make_toy_rrsisd

__all__ = ["is_toy", "make_toy_rrsisd"]
