"""Checkpoints in and out: this project's own, the original programs', and Swin's classification weights."""
from lib.checkpoint.files import digest_file, load_checkpoint, read_checkpoint, restore, save_checkpoint
from lib.checkpoint.swin_weights import load_swin_weights

__all__ = ["digest_file", "load_checkpoint", "load_swin_weights", "read_checkpoint", "restore", "save_checkpoint"]
