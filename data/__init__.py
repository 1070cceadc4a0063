"""Data sets of image, sentence and mask, ready for the network; and the toy data set's generator."""
from data.dataset import EvalSet, RefsReader, TrainSet, identify, read_refs, tokenize_refs
from data.loader import eval_loader, make_loaders, train_loader

__all__ = ["EvalSet", "RefsReader", "TrainSet", "eval_loader", "identify", "make_loaders",
           "read_refs", "tokenize_refs", "train_loader"]
