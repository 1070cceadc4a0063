"""Handling of losses and gradients that are not finite: batches are named, and skipped or the run is stopped."""
import math
from typing import Any

import torch

from distributed import any_process, gather_objects
from lib.training.state import Progress
from lib.training.update_step import Updater
from utils import UserError, log


class NonFiniteGuard:
    """Counts updates skipped for a gradient that is not finite, and stops the run after more than `tolerated` of them.

    `unseen` collects the samples' indices of batches whose losses are not checked yet; `dataset.ref_of` names them.
    """

    def __init__(self, updater: Updater, progress: Progress, tolerated: int, dataset: Any):
        self.updater, self.progress, self.tolerated, self.dataset = updater, progress, tolerated, dataset
        self.unseen: list[torch.Tensor] = []

    def check(self) -> None:
        """Checks the updates since the last check. Raises `UserError` if more than `tolerated` were skipped."""
        updater, progress, batches = self.updater, self.progress, len(self.unseen)
        bad = int(updater.bad_updates.item())
        if updater.scaler and any_process(not math.isfinite(updater.loss_sum.item())):
            bad = self.tolerated + 1   # with fp16 gradients may overflow, but losses may not
        if bad:
            updater.bad_updates.zero_()
            progress.skipped += bad
            what = (f"loss or gradient is not finite in epoch {progress.epoch}, iteration {progress.step - batches}"
                    f"{f' to {progress.step - 1}' if batches > 1 else ''}, on refs {self.refs()}")
            if progress.skipped > self.tolerated:
                raise UserError(f"{what}; stopped before the update. Look at these refs, lower --lr, or go on from the "
                                "last checkpoint with --resume auto; --skip_nonfinite N leaves out up to N such "
                                "batches")
            log(f"{what}; left out ({progress.skipped} of {self.tolerated} tolerated)")
        self.unseen.clear()

    def refs(self) -> str:
        """The ref ids of the unseen batches over all processes."""
        refs = [self.dataset.ref_of(index)["ref_id"] for part in self.unseen for index in part.tolist()]
        return ", ".join(str(ref) for share in gather_objects(refs) for ref in share)
