"""The loop over epochs: what is validated, recorded and saved, in which order."""
from types import SimpleNamespace

import pytest
import torch

import train
from lib.training.state import Progress
from utils import MachineError, UserError


class State:
    """The state of a run of two epochs; `done` notes what happens to it."""

    def __init__(self, average=None):
        self.done, self.progress = [], Progress()
        self.args = SimpleNamespace(epochs=2)
        self.model, self.device = "model", torch.device("cpu")
        self.average = SimpleNamespace(network="average") if average else None
        self.schedule = SimpleNamespace(get_last_lr=lambda: [0.5])

    def save(self, *kinds):
        self.done.append("save")

    def save_between_updates(self):
        self.done.append("save between updates")

    def end_epoch(self, oIoU):
        self.done.append(("end", oIoU))
        self.progress.next_epoch()


@pytest.fixture
def fit(monkeypatch):
    """fit(state, metrics={network: oIoU}) -> the entries that were recorded."""
    def run(state, metrics, training=lambda state, batches, args: {"loss": 1.0}):
        def validate(state, batches, network):
            state.done.append(f"validate {network}")
            return {"mIoU": 0.0, "oIoU": metrics[network], "boundary_IoU": 0.0, "precision": {}} if metrics else {}

        entries = []
        monkeypatch.setattr(train, "train_one_epoch", training)
        monkeypatch.setattr(train, "validate", validate)
        monkeypatch.setattr(train, "format_all", str)
        record = SimpleNamespace(epoch=lambda entry, model: entries.append(entry))
        train.fit(train.Run(state, [], [], record, resumed=False))
        return entries
    return run


def test_an_epoch_is_saved_before_it_is_validated_and_recorded_after(fit):
    entries = fit(state := State(), {"model": 40.0})
    assert state.done == 2 * ["save", "validate model", ("end", 40.0)]
    assert [(entry["epoch"], entry["lr"], entry["loss"], entry["val"]["oIoU"]) for entry in entries] == [
        (0, 0.5, 1.0, 40.0), (1, 0.5, 1.0, 40.0)]


def test_the_averaged_weights_choose_the_best_epoch_where_they_are_kept(fit):
    entries = fit(state := State(average=True), {"model": 40.0, "average": 30.0})
    assert state.done[:4] == ["save", "validate model", "validate average", ("end", 30.0)]
    assert entries[0]["val_ema"]["oIoU"] == 30.0


def test_a_run_without_a_readable_val_image_stops(fit):
    with pytest.raises(UserError, match=r"no image of the val split could be read; tools/check_dataset\.py"):
        fit(state := State(), {})
    assert state.done == ["save", "validate model"]


def test_a_failure_of_the_machine_saves_the_run(fit):
    def training(*_):
        raise MachineError("a loader process is gone")

    with pytest.raises(MachineError, match=r"a loader process is gone\. The run is saved; --resume auto goes on"):
        fit(state := State(), {"model": 1.0}, training)
    assert state.done == ["save between updates"]
