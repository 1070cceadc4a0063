"""Checkpoints in and out: this project's own, the original programs', and Swin's classification weights."""
from lib.checkpoint.files import digest_file, load_checkpoint, read_checkpoint, restore, save_checkpoint
from lib.checkpoint.settings import describe_model, model_settings
from lib.checkpoint.strict_loading import load_weights
from lib.checkpoint.swin_weights import load_swin_weights

__all__ = ["describe_model", "digest_file", "load_checkpoint", "load_swin_weights", "load_weights",
           "model_settings", "read_checkpoint", "restore", "save_checkpoint"]
