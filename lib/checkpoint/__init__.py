"""Reading and writing of checkpoints: this project's, the original programs', and Swin's classification weights."""
from lib.checkpoint.digests import digest_file
from lib.checkpoint.files import load_checkpoint, peek, read_checkpoint, restore, save_checkpoint
from lib.checkpoint.model_folder import weights_file
from lib.checkpoint.settings import describe_model, model_settings
from lib.checkpoint.strict_loading import build_with_weights, load_weights
from lib.checkpoint.swin_weights import load_swin_weights

__all__ = ["build_with_weights", "describe_model", "digest_file", "load_checkpoint", "load_swin_weights",
           "load_weights", "model_settings", "peek", "read_checkpoint", "restore", "save_checkpoint", "weights_file"]
