"""The choice of a checkpoint from which a run is resumed, and the checks that it is the same run."""
import math
import textwrap
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from distributed import gather_objects
from lib.checkpoint import peek, read_checkpoint
from lib.checkpoint.digests import move_digests
from lib.checkpoint.official_layout import is_official
from lib.checkpoint.starting import settings_to_start
from lib.loss_table import loss_of_share
from lib.segmentation import NETWORK_FLAGS
from lib.training.recipes import fit_to_samples, follow_network
from lib.training.state import MASKS, Progress, run_files, same_data
from schema import Range, check, faults
from utils import UserError, log, set_aside, sha256_of

# Flags that change what is computed; the others (paths, workers, log lines) may differ in a resumed run.
DECISIVE = (*NETWORK_FLAGS, "dataset", "splitBy", "exclude", "published_masks", "published_validation", "overfit",
            "epochs", "passes", "batch_size", "lr", "warmup_iters", "weight_decay", "amsgrad", "loss",
            "random_box_share", "bert_layers", "text_layers", "train_embeddings", "bert_dropout", "seed", "amp",
            "accumulate", "ema", "masked_pass")


@dataclass
class RunState:
    """The entries of a checkpoint that a run is resumed from, besides the network; PyTorch checks their contents."""

    progress: Progress
    args: dict[str, Any]
    world_size: Annotated[int, Range(1, 2**20)]
    optimizer: dict[str, Any]
    lr_scheduler: dict[str, Any]
    generators: list[dict[str, Any]]
    scaler: dict[str, Any] = field(default_factory=dict)
    ema: dict[str, Any] = field(default_factory=dict)


def find_checkpoint(folder: Path, model_id: str) -> tuple[str, dict[str, Any]]:
    """`--resume auto`: this run's furthest loadable checkpoint and its contents; ('', {}) if there is none.

    The progress stored in the files decides, not their times, since copying a best checkpoint changes its time. A
    checkpoint that is damaged or cannot be read is named in the log and skipped.
    """
    files = [path for path in run_files(folder, model_id).values() if path.is_file()]
    for path in sorted(files, key=lambda path: progress_of(peek(path, "progress")), reverse=True):
        try:
            checkpoint = read_checkpoint(path)
        except UserError as error:
            log(f"skipped this checkpoint: {error}")
            continue
        if not faults(Progress, checkpoint.get("progress")):
            return str(path), checkpoint
    return "", {}


def progress_of(stored: Any) -> tuple[float, float]:
    """Epoch and step of a checkpoint's `progress`, as a sort key; a damaged one comes first, so that it is named."""
    return (math.inf, math.inf) if faults(Progress, stored) else (stored.get("epoch", 0), stored.get("step", 0))


def goes_on(checkpoint: dict[str, Any]) -> bool:
    """Whether a run can be resumed from a checkpoint, which holds its state and not weights alone."""
    return "progress" in checkpoint and isinstance(checkpoint.get("model"), dict) and not is_official(checkpoint)


def choose_start(resume: str, folder: Path, model_id: str, restarted: bool) -> tuple[str, dict[str, Any]]:
    """The file that `--resume` selects and its contents, or ('', {}) for a new run.

    A run that the launcher `restarted` is resumed from its own newest checkpoint, whatever it started from. Raises
    `UserError` if the file cannot be used, or if the processes do not see the same one.
    """
    path = ""
    checkpoint: dict[str, Any] = {}
    if restarted:
        log("started again by the launcher")
    if resume == "auto" or restarted:
        path, checkpoint = find_checkpoint(folder, model_id)
        log(f"resuming from {path}" if path else f"--resume auto: no checkpoint in {folder} yet, so a new run begins")
    if not path and resume not in ("", "auto"):
        path, checkpoint = resume, read_checkpoint(resume)
    if goes_on(checkpoint):
        check(RunState, checkpoint, f"--resume {path}")
    seen = gather_objects(checkpoint.get("progress"))
    if any(progress != seen[0] for progress in seen):
        raise UserError(f"the processes found different checkpoints in {folder}: it must be a folder that all machines "
                        "share, so give one with --output-dir")
    return path, checkpoint


def set_earlier_run_aside(resume: str, folder: Path, model_id: str) -> None:
    """Renames the checkpoints of an earlier run of this name, unless this run resumes from one of them."""
    files = list(run_files(folder, model_id).values())
    if resume == "auto" or (resume and Path(resume).resolve() in [path.resolve() for path in files]):
        return
    for path in files:
        if kept := set_aside(path):
            log(f"an earlier run of this name left {path}: it is renamed to {kept}")
            move_digests(path, kept)


def decisive_flags(args: Namespace) -> str:
    """The flags that change what is computed, with their values, for the log."""
    flags = ", ".join(f"{name} {getattr(args, name)!r}" for name in DECISIVE)
    return textwrap.fill(f"recipe: {flags}", 120, subsequent_indent="    ", break_on_hyphens=False)


def annotation_digests(paths: Iterable[str], masks: str = "") -> dict[str, str]:
    """{folder and name of an annotation file: its SHA-256}, and the fingerprint of the `masks` if they are pictures."""
    return {"/".join(Path(path).parts[-2:]): sha256_of(path) for path in paths} | ({MASKS: masks} if masks else {})


def settle_flags(args: Namespace, checkpoint: dict[str, Any], samples: int, world_size: int) -> None:
    """Sets the flags that were left open to what follows from the files, in place.

    With `--init_from`, the network's settings and its recipe; epochs and passes by the number of training `samples`;
    the batch size of a run that goes on with another number of processes. `checkpoint` is that of `--resume`, or {}.
    """
    if args.init_from and "config" in (start := checkpoint or read_checkpoint(args.init_from)):
        follow_network(args, settings_to_start(args, start)[0])
    for name in ("epochs", "passes") if goes_on(checkpoint) else ():   # a run that goes on keeps its own
        if getattr(args, name) is None and type(stored := checkpoint["args"].get(name)) is int and stored > 0:
            setattr(args, name, stored)
    fit_to_samples(args, min(samples, args.overfit or samples))
    if goes_on(checkpoint) and not args.allow_changed_flags:
        args.batch_size = same_global_batch(args, checkpoint, world_size)


def same_global_batch(args: Namespace, checkpoint: dict[str, Any], world_size: int) -> int:
    """The batch size of a process for which the global batch is the same as in the run of `checkpoint`.

    It is the flag's value unless the number of processes has changed and the flag has not. Raises `UserError` if the
    batches cannot be shared equally.
    """
    before = checkpoint["world_size"]
    if world_size == before or args.batch_size != checkpoint["args"].get("batch_size", args.batch_size):
        return args.batch_size
    together = args.batch_size * before
    if together % world_size:
        raise UserError(f"--resume {args.resume}: its batches of {together} cannot be shared by {world_size} "
                        f"processes; start a number that divides {together}, or give --allow_changed_flags")
    log(f"{world_size} processes instead of {before}: {together // world_size} samples each, {together} together as "
        "before")
    return together // world_size


def changed_flags(stored: dict[str, Any], flags: dict[str, Any]) -> list[str]:
    """Those of `DECISIVE` whose value in `flags` is not the one that a checkpoint stored; it may lack newer flags."""
    before = as_stored_now(stored)
    return [name for name in DECISIVE if before.get(name, flags.get(name)) != flags.get(name)]


def as_stored_now(stored: dict[str, Any]) -> dict[str, Any]:
    """The flags of a checkpoint; one from before `--loss` has its share of the Dice loss instead."""
    share = stored.get("dice_weight")
    if "loss" in stored or not isinstance(share, int | float) or not 0 <= share <= 1:
        return stored
    return {**stored, "loss": loss_of_share(share)}


def refuse_changes(args: Namespace, checkpoint: dict[str, Any], world_size: int, annotations: dict[str, str]) -> None:
    """Raises `UserError` naming each flag whose change would make this a different run than `checkpoint`'s.

    `annotations` maps the names of this run's annotation files to their SHA-256. The batch size of a process may
    differ if the global batch stays the same (`same_global_batch`).
    """
    stored, path = as_stored_now({"batch_size": args.batch_size, **checkpoint["args"]}), args.resume
    same_batch = args.batch_size * world_size == stored["batch_size"] * checkpoint["world_size"]
    changed = [f"{name} was {stored[name]!r}, is {getattr(args, name)!r}" for name in changed_flags(stored, vars(args))
               if not (name == "batch_size" and same_batch)]
    if not same_data(checkpoint.get("annotations", annotations), annotations):
        changed.append("the annotation files differ" if {**checkpoint["annotations"], MASKS: ""} != {
            **annotations, MASKS: ""} else "the pictures of masks differ")
    if changed:
        raise UserError(f"--resume {path} with other flags than the run began with: {'; '.join(changed)}. Give the "
                        f"same, or start a new run from these weights with --init_from {path}; --allow_changed_flags "
                        "resumes this one nevertheless")
