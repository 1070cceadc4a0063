"""The state of a training run besides the network's weights, and its checkpoint."""
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from tokenizers import Tokenizer
from torch import nn

from distributed import gather_objects
from lib.accelerate.threads import choose_threads
from lib.checkpoint import describe_model, peek, save_checkpoint
from lib.model import ReferringSegmenter
from lib.segmentation import ModelConfig
from lib.training.averaging import WeightAverage
from lib.training.generators import generator_states, restore_generators
from lib.training.masked_pass import Disturbance
from lib.training.optimizer import make_optimizer, restore_optimizer, warm_up_of
from lib.training.update_step import Updater
from schema import Range, faults
from utils import UserError, duration, log, rank, world_size

Count = Annotated[int, Range(0, 2**53)]


@dataclass
class Progress:
    """How far a run has come: the next batch is number `step` of `epoch`. Also the epoch's figures and the best IoU."""

    epoch: Count = 0
    step: Count = 0
    loss_sum: float = 0.0
    empty_masks: Count = 0
    seconds: Annotated[float, Range(0)] = 0.0
    skipped: Count = 0  # batches of the whole run skipped for a loss that is not finite
    best_oIoU: Annotated[float, Range(-1, 100)] = -1.0

    def seconds_left(self, batches: int, epochs: int) -> float:
        """Seconds until the end of the last epoch at this epoch's speed, without validation."""
        return ((epochs - self.epoch) * batches - self.step) * self.seconds / self.step

    def clock(self) -> Callable[[], float]:
        """A function that returns the seconds spent in this epoch, including those before a resumed run was stopped."""
        start = time.perf_counter() - self.seconds
        return lambda: time.perf_counter() - start

    def next_epoch(self) -> None:
        """Moves on to the first batch of the next epoch."""
        self.epoch, self.step, self.loss_sum, self.empty_masks, self.seconds = self.epoch + 1, 0, 0.0, 0, 0.0

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data, for a checkpoint."""
        return asdict(self)


def run_files(folder: Path, model_id: str) -> dict[str, Path]:
    """The paths of the last and the best checkpoint of a run, whether they exist or not."""
    return {kind: folder / f"model_{kind}_{model_id}.pth" for kind in ("last", "best")}


MASKS = "masks"   # beside the annotation files: a fingerprint of the pictures that are masks


def same_data(stored: dict[str, str], now: dict[str, str]) -> bool:
    """Whether two runs have the same annotations and masks; old checkpoints say nothing of masks that are pictures."""
    return stored in (now, {name: digest for name, digest in now.items() if name != MASKS})


class TrainingState:
    """Optimiser, schedule, scaler, progress and random generators of a run of `model`.

    `wrapped` is the module that a training step calls (see `distributed.wrap`), `average` the average of the weights if
    one is kept, and `batches` the number of batches of an epoch in this process. `config` and `tokenizer` describe the
    network in a checkpoint. `annotations` maps each annotation file to its SHA-256, and `MASKS` to the
    masks' fingerprint.
    """

    def __init__(self, args: Namespace, model: ReferringSegmenter, wrapped: nn.Module, average: WeightAverage | None,
                 device: torch.device, batches: int, config: ModelConfig, tokenizer: Tokenizer,
                 annotations: dict[str, str]):
        self.args, self.model, self.average, self.device = args, model, average, device
        self.description = describe_model(config, tokenizer)
        self.files = run_files(Path(args.output_dir), args.model_id)
        self.annotations, self.batches = annotations, batches
        self.iterations = args.epochs * batches // args.accumulate
        self.optimizer, self.schedule = make_optimizer(
            model, args.lr, args.weight_decay, self.iterations, warm_up_of(args, self.iterations), args.amsgrad)
        self.updater = Updater(wrapped, self.optimizer, self.schedule, device, args.amp, args.accumulate,
                               args.skip_nonfinite > 0, passes=1 + args.masked_pass)
        self.disturb = Disturbance(tokenizer) if args.masked_pass else None
        self.threads = choose_threads(device, args.deterministic)
        self.progress = Progress()

    def resume(self, checkpoint: dict[str, Any]) -> None:
        """Restores the state in `checkpoint`, whose weights are loaded already, so that the run continues exactly.

        Raises `UserError` if the optimiser or schedule belongs to a run with other parameters or of another length.
        """
        another = f"--resume: this checkpoint is of another run; --init_from {self.args.resume} starts from its weights"
        try:
            restore_optimizer(self.optimizer, checkpoint["optimizer"])
            self.schedule.load_state_dict(checkpoint["lr_scheduler"])
            if self.updater.scaler and checkpoint.get("scaler"):
                self.updater.scaler.load_state_dict(checkpoint["scaler"])
            if self.average and checkpoint.get("ema"):   # without it, the average starts from the current weights
                self.average.network.load_state_dict(checkpoint["ema"])
                self.average.updates = self.schedule.last_epoch
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise UserError(f"{another} ({error})") from error
        self.progress = Progress(**checkpoint["progress"])
        left = (self.args.epochs - self.progress.epoch) * self.batches - self.progress.step
        if left > 0 and self.schedule.last_epoch >= self.iterations:
            raise UserError(f"{another} (its schedule of {self.iterations} iterations is at its end, so the {left} "
                            "batches that are left would train at lr 0)")
        # The best IoU counts only if its file exists: a run may end between two files, or be resumed in another folder.
        same = same_data(checkpoint.get("annotations", self.annotations), self.annotations)
        self.progress.best_oIoU = min(self.progress.best_oIoU, self.best_on_disk()) if same else -1.0
        if world_size() == checkpoint["world_size"]:
            restore_generators(checkpoint["generators"][rank()], self.device)
        log(f"going on with epoch {self.progress.epoch}, iteration {self.progress.step}; best overall IoU so far "
            f"{self.progress.best_oIoU:.2f}")

    def save_is_due(self) -> bool:
        """Whether `--save_every` asks for a checkpoint after this update."""
        return self.args.save_every > 0 and self.progress.step % self.args.save_every < self.args.accumulate

    def log_is_due(self) -> bool:
        """Whether `--print-freq` asks for a log line after this update."""
        return self.progress.step // self.args.accumulate % self.args.print_freq == 0

    def look_is_due(self) -> bool:
        """Whether the losses are read after this update: always on a CPU; only with log lines on a GPU, which waits."""
        return self.device.type != "cuda" or self.log_is_due()

    def log_line(self) -> str:
        """The position in the epoch, its mean loss, the learning rate, the speed and the time that is left."""
        progress = self.progress
        left = duration(progress.seconds_left(self.batches, self.args.epochs))
        return (f"epoch {progress.epoch} [{progress.step}/{self.batches}] loss {progress.loss_sum / progress.step:.4f} "
                f"lr {self.schedule.get_last_lr()[0]:.3g} {self.images_per_second():.1f} images/s, "
                f"{left} of training left")

    def images_per_second(self) -> float:
        """The speed of all processes together in this epoch."""
        return self.progress.step * self.args.batch_size * world_size() / max(self.progress.seconds, 1e-9)

    def epoch_figures(self) -> dict[str, float]:
        """The figures of a whole epoch, for the record."""
        progress = self.progress
        return {"loss": progress.loss_sum / self.batches, "train_seconds": progress.seconds,
                "empty_masks": progress.empty_masks, "skipped": progress.skipped,
                "images_per_second": self.images_per_second()}

    def end_epoch(self, oIoU: float) -> None:
        """Moves on to the next epoch and saves, as the best checkpoint too if the val split's `oIoU` is the highest."""
        is_best = oIoU > self.progress.best_oIoU
        self.progress.best_oIoU = max(self.progress.best_oIoU, oIoU)
        self.progress.next_epoch()
        self.save(*(["best", "last"] if is_best else ["last"]))

    def best_on_disk(self) -> float:
        """The overall IoU of the best checkpoint on disk, -1 without one."""
        stored = peek(self.files["best"], "progress")
        return -1.0 if faults(Progress, stored) else stored.get("best_oIoU", -1.0)

    def save_between_updates(self) -> None:
        """Saves after a batch could not be loaded; a resumed run repeats the batches since the last update."""
        self.progress.step -= self.updater.waiting
        self.progress.loss_sum = self.updater.loss_sum.item()
        self.save()

    def save(self, *kinds: str) -> None:
        """Writes the state as the run's checkpoint of each kind, by default "last"; every process must call it."""
        generators = gather_objects(generator_states(self.device))
        if rank() > 0:
            return
        averaged = {"ema": self.average.network.state_dict()} if self.average else {}
        checkpoint = {"model": self.model.state_dict(), **averaged, "optimizer": self.optimizer.state_dict(),
                      "lr_scheduler": self.schedule.state_dict(),
                      "epoch": self.progress.epoch - (self.progress.step == 0), "args": vars(self.args),
                      "annotations": self.annotations,
                      "progress": self.progress.to_dict(), "world_size": world_size(), "generators": generators,
                      "scaler": self.updater.scaler.state_dict() if self.updater.scaler else {}, **self.description}
        for kind in kinds or ("last",):
            save_checkpoint(self.files[kind], checkpoint)
