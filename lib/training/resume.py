"""Where a training run stands, so that it can go on as if it had not been interrupted."""
from argparse import Namespace
from pathlib import Path
from typing import Any

from distributed import gather_objects
from lib.checkpoint import digest_file, read_checkpoint
from lib.checkpoint.official_layout import is_official
from lib.segmentation import NETWORK_FLAGS
from lib.training.state import run_files
from utils import UserError, log, set_aside

# Flags that change what is computed; the others (paths, workers, log lines) may differ when a run goes on.
DECISIVE = (*NETWORK_FLAGS, "dataset", "splitBy", "exclude", "published_masks", "published_validation", "epochs",
            "batch_size", "lr", "warmup_iters", "weight_decay", "amsgrad", "dice_weight", "random_box_share",
            "bert_layers", "train_embeddings", "bert_dropout", "seed", "amp", "accumulate")


def find_checkpoint(folder: Path, model_id: str) -> tuple[str, dict[str, Any]]:
    """`--resume auto`: the newest loadable checkpoint of this run and its contents, or ('', {}) if there is none.

    A damaged one is named in the log and passed over.
    """
    files = [path for path in run_files(folder, model_id).values() if path.is_file()]
    for path in sorted(files, key=lambda path: -path.stat().st_mtime_ns):
        try:
            checkpoint = read_checkpoint(path)
        except UserError as error:
            log(f"passed over: {error}")
            continue
        if "progress" in checkpoint:
            return str(path), checkpoint
    return "", {}


def goes_on(checkpoint: dict[str, Any]) -> bool:
    """Whether a checkpoint holds the state of a run, and not weights alone."""
    return "progress" in checkpoint and not is_official(checkpoint)


def choose_start(resume: str, folder: Path, model_id: str, restarted: bool) -> tuple[str, dict[str, Any]]:
    """What `--resume` stands for: a file and its contents, or ('', {}) for a new run.

    A run that the launcher `restarted` goes on from its own newest checkpoint, whatever it began with. Raises
    `UserError` if the file cannot be used, or if the processes do not see the same one.
    """
    path, checkpoint = "", {}
    if resume == "auto" or restarted:
        path, checkpoint = find_checkpoint(folder, model_id)
        log(f"going on from {path}" if path else f"--resume auto: none in {folder} yet, a new run begins")
    if not path and resume not in ("", "auto"):
        path, checkpoint = resume, read_checkpoint(resume)
    seen = gather_objects(checkpoint.get("progress"))
    if any(progress != seen[0] for progress in seen):
        raise UserError(f"the processes found different checkpoints in {folder}: it must be a folder that all machines "
                        "share, so give one with --output-dir")
    return path, checkpoint


def set_earlier_run_aside(resume: str, folder: Path, model_id: str) -> None:
    """Renames the checkpoints that an earlier run of this name left, unless this run goes on with them."""
    files = list(run_files(folder, model_id).values())
    if resume == "auto" or (resume and Path(resume).resolve() in [path.resolve() for path in files]):
        return
    for path in files:
        if kept := set_aside(path):
            log(f"an earlier run of this name left {path}: it is {kept} from now on")
            digest_file(path).unlink(missing_ok=True)


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
    changed = [f"{name} was {stored[name]!r}, is {getattr(args, name)!r}" for name in DECISIVE
               if stored.get(name, getattr(args, name)) != getattr(args, name) and not (name == "batch_size"
                                                                   and args.batch_size * world_size == together)]
    if changed:
        raise UserError(f"--resume {path} with other flags than the run began with: {'; '.join(changed)}. Give the "
                        "same, or --allow_changed_flags")
