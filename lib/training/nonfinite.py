"""What happens when a loss or a gradient is not finite: the batches are named, and left out or the run stopped."""
import math
from typing import Any

import torch

from distributed import any_process, gather_objects
from lib.training.state import Progress
from lib.training.update_step import Updater
from utils import UserError, log


class NonFiniteGuard:
    """Counts updates left out for a gradient that was not finite, and stops the run after `tolerated` of them.

    `unseen` gathers the samples' indices of batches whose losses were not looked at yet; `dataset.ref_of` names them.
    """

    def __init__(self, updater: Updater, progress: Progress, tolerated: int, dataset: Any):
        self.updater, self.progress, self.tolerated, self.dataset = updater, progress, tolerated, dataset
        self.unseen: list[torch.Tensor] = []

    def check(self) -> None:
        """Looks at what was computed since the last look; raises `UserError` when too much was left out."""
        updater, progress, batches = self.updater, self.progress, len(self.unseen)
        bad = int(updater.bad_updates.item())
        if updater.scaler and any_process(not math.isfinite(updater.loss_sum.item())):
            bad = self.tolerated + 1   # fp16's gradients may overflow, a loss may not
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
