"""The record of a training run in models/ID, besides its checkpoints: its starts, its log, its curves.

`run.json` describes each start of the run, `log.jsonl` has an entry for each epoch, and `curves.png` draws them;
TensorBoard and Weights & Biases receive them on request. Only the first process writes and imports these packages.
"""
import json
import os
import platform
import shlex
import subprocess
import sys
import uuid
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import default_collate

from lib.evaluation.metrics import evaluate, predict
from lib.imagery.drawing import PREDICTION_COLOUR, TRUTH_COLOUR, overlay
from utils import UserError, describe_run, log, rank, set_aside, write_json
from utils.files import temporary_beside

CODE = Path(__file__).resolve().parents[2]
PICTURES = 4  # val samples shown in TensorBoard


class RunRecord:
    """Keeps the record of a run in `folder`, which has the run's name.

    Make it before slow work: it raises `UserError` if the package of `tensorboard` or `wandb` is missing. Call `begin`,
    a context manager, when the epoch to start with is known, and `epoch` after each epoch.
    """

    def __init__(self, folder: Path, args: Namespace, device: torch.device, tensorboard: bool, wandb: bool):
        self.folder, self.args, self.device, self.first = folder, args, device, rank() == 0
        self.tensorboard = _load("torch.utils.tensorboard", "tensorboard") if tensorboard and self.first else None
        self.wandb = _load("wandb", "wandb") if wandb and self.first else None
        self.writer: Any = None
        self.online: Any = None
        self.samples: list[tuple[dict[str, Any], str]] = []

    def begin(self, goes_on: bool, epoch: int, val_set: Any) -> "RunRecord":
        """Adds this start to `run.json` and opens TensorBoard and W&B at `epoch`, the next one.

        A new run renames the record of an earlier run of its name. `val_set` is a `data.EvalSet`, of which TensorBoard
        shows some samples. Raises `UserError` if `run.json` cannot be written or W&B cannot be started.
        """
        if not self.first:
            return self
        if not goes_on:
            for name in ("log.jsonl", "run.json", "curves.png", "tensorboard"):
                set_aside(self.folder / name)
        content = self._earlier_starts()
        content["starts"].append({
            "time": datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": shlex.join([sys.executable, *sys.argv]), "flags": vars(self.args), **describe_run(self.device),
            "host": platform.node(), "working_directory": os.getcwd(), "git": git_state(CODE)})
        if self.wandb:
            content.setdefault("wandb_id", uuid.uuid4().hex[:8])
        write_json(self.folder / "run.json", content)
        if self.wandb:
            try:
                self.online = self.wandb.init(
                    project="referring-segmentation", name=self.folder.name, config=vars(self.args),
                    dir=str(self.folder), resume="allow", id=content["wandb_id"])
            except Exception as error:   # wandb's errors have no common class
                raise UserError(f"--wandb: {_one_line(error)}; `wandb login` once, set WANDB_MODE=offline, or leave "
                                "the flag out") from error
        if self.tensorboard:
            with _spared("TensorBoard"):   # a repeated epoch replaces its earlier entries
                self.writer = self.tensorboard.SummaryWriter(str(self.folder / "tensorboard"), purge_step=epoch)
                self.samples = pick_samples(val_set, PICTURES)
        return self

    def __enter__(self) -> "RunRecord":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self.writer:
            with _spared("the end of TensorBoard's file"):
                self.writer.close()
        if self.online:
            with _spared("the end of the W&B run"):
                self.online.finish(exit_code=int(kind is not None))

    def epoch(self, entry: dict[str, Any], model: nn.Module) -> None:
        """Records an epoch in `log.jsonl`, `curves.png`, TensorBoard and W&B.

        `entry` has `epoch`, `lr`, `loss`, `images_per_second` and `val` (see `lib.evaluation.metrics`), and `val_ema`
        if an average of the weights is kept; `model` predicts the masks of the sample pictures. A failure to write is
        logged and does not end the run.
        """
        if not self.first:
            return
        with _spared(f"this epoch in {self.folder / 'log.jsonl'}"):
            append_json_line(self.folder / "log.jsonl", entry)
        with _spared(f"{self.folder / 'curves.png'}"):
            draw_curves(read_log(self.folder / "log.jsonl"), self.folder / "curves.png")
        if self.writer:
            with _spared("this epoch in TensorBoard"):
                for name, value in scalars(entry).items():
                    self.writer.add_scalar(name, value, entry["epoch"])
                self._show_samples(entry["epoch"], model)
                self.writer.flush()
        if self.online:
            with _spared("this epoch in W&B"):
                self.online.log(entry, step=entry["epoch"])

    def _earlier_starts(self) -> dict[str, Any]:
        """The contents of `run.json`; a damaged file is renamed."""
        path = self.folder / "run.json"
        with suppress(OSError, ValueError):
            content = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(content, dict) and isinstance(content.get("starts"), list):
                return content
        if kept := set_aside(path):
            log(f"{path} is damaged: it is renamed to {kept}")
        return {"starts": []}

    def _show_samples(self, epoch: int, model: nn.Module) -> None:
        """Adds the samples with the truth (left) and the model's prediction (right) to TensorBoard."""
        if not self.samples:
            return
        predictions: list[np.ndarray] = []
        evaluate(model, [default_collate([sample for sample, _ in self.samples])], self.device, self.args.amp,
                 lambda _, logits: predictions.extend(predict(logits).cpu().numpy()))
        for number, ((sample, sentence), predicted) in enumerate(zip(self.samples, predictions, strict=True), start=1):
            image = np.ascontiguousarray(sample["image"].permute(1, 2, 0).numpy())
            panels = (overlay(image, sample["target"].numpy().astype(bool), TRUTH_COLOUR),
                      overlay(image, predicted, PREDICTION_COLOUR))
            self.writer.add_image(f"val/{number}", np.concatenate(panels, axis=1), epoch, dataformats="HWC")
            self.writer.add_text(f"val/{number}", sentence, epoch)


def _load(module: str, package: str) -> ModuleType:
    """Imports a module of an optional package. Raises `UserError` with the command that installs it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(f"--{package} needs a package that cannot be imported ({_one_line(error)}): "
                        f"pip install {package}, or leave the flag out") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _spared(what: str) -> Iterator[None]:
    """A context that logs any error inside: a full disk or a lost connection must not end a training run."""
    try:
        yield
    except Exception as error:
        log(f"going on without {what}: {_one_line(error)}")


def append_json_line(path: Path, entry: dict[str, Any]) -> None:
    """Appends a JSON object as a line to `path`, making its folder; an incomplete last line is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if end := file.tell():
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(entry).encode() + b"\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a log by epoch, without incomplete lines; the last entry of a repeated epoch counts."""
    entries = {}
    for line in path.read_bytes().splitlines():
        with suppress(ValueError, TypeError, KeyError):
            entry = json.loads(line)
            entries[entry["epoch"]] = entry
    return [entries[epoch] for epoch in sorted(entries)]


def scalars(entry: Mapping[str, Any]) -> dict[str, float]:
    """{name: value} of the figures of an epoch for TensorBoard."""
    return {**{f"train/{name}": entry[name] for name in ("loss", "lr", "images_per_second")},
            **{f"{split}/{name}": entry[split][name] for split in ("val", "val_ema") if split in entry
               for name in ("mIoU", "oIoU")},
            **{f"val/precision@{x}": value for x, value in entry["val"]["precision"].items()}}


def draw_curves(entries: list[dict[str, Any]], path: Path) -> None:
    """Draws loss, learning rate and val IoU over the epochs as a PNG, written atomically. Raises `OSError`."""
    # These modules are slow to import.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = [entry["epoch"] for entry in entries]
    figure = Figure(figsize=(12, 3.6))
    # Fixed margins: computing them takes as long as drawing.
    loss, rate, iou = figure.subplots(1, 3, gridspec_kw={"left": 0.05, "right": 0.99, "bottom": 0.14, "top": 0.91})
    loss.plot(epochs, [entry["loss"] for entry in entries], ".-")
    rate.plot(epochs, [entry["lr"] for entry in entries], ".-")
    for name, label in (("mIoU", "mean IoU"), ("oIoU", "overall IoU")):
        (line,) = iou.plot(epochs, [entry["val"][name] for entry in entries], ".-", label=label)
        if averaged := [entry for entry in entries if "val_ema" in entry]:
            iou.plot([entry["epoch"] for entry in averaged], [entry["val_ema"][name] for entry in averaged], ".--",
                     color=line.get_color(), label=f"{label}, averaged weights")
    iou.legend()
    for axes, title in ((loss, "training loss"), (rate, "learning rate"), (iou, "val, percent")):
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    temporary = temporary_beside(path)
    try:
        FigureCanvasAgg(figure).print_png(temporary)
        os.replace(temporary, path)
    finally:
        with suppress(OSError):   # it is renamed already on success
            temporary.unlink()


def pick_samples(val_set: Any, number: int) -> list[tuple[dict[str, Any], str]]:
    """Up to `number` samples of a `data.EvalSet`, evenly spread, with their sentences, without unreadable images."""
    indices = np.linspace(0, len(val_set) - 1, min(number, len(val_set))).round().astype(int).tolist()
    picked = [(val_set[index], val_set.describe(index)["sentence"]) for index in indices]
    return [(sample, sentence) for sample, sentence in picked if "image" in sample]


def git_state(folder: Path) -> dict[str, Any] | None:
    """`commit`, `branch` (None if detached) and whether tracked files are `modified`, of the checkout around `folder`.

    None without a checkout or without git. Variables GIT_* of the environment are ignored.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(folder), "status", "--porcelain=v2", "--branch",
               "--untracked-files=no"]
    try:
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    lines = said.splitlines()
    about = dict(line.removeprefix("# branch.").split(" ", 1) for line in lines if line.startswith("# branch."))
    branch = about.get("head")
    return {"commit": about.get("oid"), "branch": None if branch == "(detached)" else branch,
            "modified": any(not line.startswith("#") for line in lines)}
