"""Where a training run stands, so that it can go on as if it had not been interrupted."""
from argparse import Namespace
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lib.checkpoint import read_checkpoint
from utils import UserError, log

# Flags that change what is computed; the others (paths, workers, log lines) may differ when a run goes on.
DECISIVE = ("model", "swin_type", "window12", "img_size", "mha", "fusion_drop", "dataset", "splitBy", "published_masks",
            "published_validation", "epochs", "batch_size", "lr", "warmup_iters", "weight_decay", "amsgrad",
            "dice_weight", "random_box_share", "bert_layers", "train_embeddings", "seed")


@dataclass
class Progress:
    """The next thing to do is batch `step` of `epoch`; what the epoch's figures and the best epoch are so far."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    empty_masks: int = 0
    seconds: float = 0.0
    skipped: int = 0  # batches of the whole run left out for a loss that was not finite
    best_oIoU: float = -1.0

    def next_epoch(self) -> None:
        """Moves on to the first batch of the next epoch."""
        self.epoch, self.step, self.loss_sum, self.empty_masks, self.seconds = self.epoch + 1, 0, 0.0, 0, 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return asdict(self)


def find_checkpoint(folder: Path, model_id: str) -> tuple[str, dict[str, Any]]:
    """`--resume auto`: the newest loadable checkpoint of this run and its contents, or ('', {}) if there is none.

    A damaged one is named in the log and passed over.
    """
    files = [folder / f"model_{kind}_{model_id}.pth" for kind in ("last", "best")]
    for path in sorted((path for path in files if path.is_file()), key=lambda path: -path.stat().st_mtime_ns):
        try:
            checkpoint = read_checkpoint(path)
        except UserError as error:
            log(f"passed over: {error}")
            continue
        if "progress" in checkpoint:
            return str(path), checkpoint
    return "", {}


def refuse_changes(args: Namespace, checkpoint: dict[str, Any], path: str, world_size: int) -> None:
    """Raises `UserError` naming each flag that would make the run another one than `checkpoint`'s.

    Only the number of processes may change: `args.batch_size` is then set so that all of them together take
    the same batches as before.
    """
    stored = checkpoint["args"]
    together = stored["batch_size"] * checkpoint["world_size"]
    if world_size != checkpoint["world_size"] and args.batch_size == stored["batch_size"]:
        if together % world_size:
            raise UserError(f"--resume {path}: its batches of {together} cannot be shared by {world_size} processes; "
                            "start a number that divides it, or give --allow_changed_flags")
        args.batch_size = together // world_size
        log(f"{world_size} processes instead of {checkpoint['world_size']}: {args.batch_size} samples each, "
            f"{together} together as before")
    changed = [f"{name} was {stored.get(name)!r}, is {getattr(args, name)!r}" for name in DECISIVE
               if stored.get(name) != getattr(args, name) and not (name == "batch_size"
                                                                   and args.batch_size * world_size == together)]
    if changed:
        raise UserError(f"--resume {path} with other flags than the run began with: {'; '.join(changed)}. Give the "
                        "same, or --allow_changed_flags")
