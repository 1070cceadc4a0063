"""One optimiser update from one or several batches, in the chosen precision, without waiting for the device.

Reading a number from a GPU blocks the program until the GPU has finished its work. The flag for a gradient that is not
finite therefore stays on the device, where it skips the update, and is read later.
"""
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distributed import memory_advice, out_of_memory
from lib.accelerate import WeightCasts, autocast
from utils import MachineError, UserError


@contextmanager
def lack_of_memory(updater: "Updater") -> Iterator[None]:
    """A context for a training step that turns a lack of memory into one line.

    It is a `MachineError`, after which the run can be saved, but a `UserError` inside an update, which may have changed
    a part of the weights.
    """
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        if updater.updating:
            raise UserError(f"{memory_advice(error)}; an update was under way, so the last checkpoint stays as it "
                            "is") from error
        raise MachineError(memory_advice(error)) from error


class Updater:
    """Takes the mean gradient of `accumulate` batches of `passes` passes each, then steps optimizer and schedule.

    A pass is a call of `forward` and one of `backward`, which frees the activations before the next pass begins. An
    update whose gradient is not finite leaves the weights unchanged, and so do all later ones unless `skip_bad` is set:
    the caller reads `bad_updates` from time to time and stops the run. All processes agree, because they see the same
    gradient after the all-reduce. With fp16 such updates are a part of loss scaling and are not counted.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer,
                 schedule: torch.optim.lr_scheduler.LRScheduler, device: torch.device, amp: str = "off",
                 accumulate: int = 1, skip_bad: bool = False, passes: int = 1):
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.device, self.amp, self.accumulate, self.skip_bad = device, amp, accumulate, skip_bad
        self.casts = WeightCasts(model)
        self.scaler = torch.amp.GradScaler(device.type) if amp == "fp16" else None
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.passes = passes                                            # per batch
        self.passes_done = 0                                            # since the last update
        self.updating = False                                           # also after an error inside an update
        self.bad_updates = torch.zeros((), device=device)
        self.buffers: list[Tensor] = []                                 # values before the update's first batch
        precise = torch.float32 if device.type == "mps" else torch.float64   # Apple's GPUs have no float64
        self.loss_sum = torch.zeros((), dtype=precise, device=device)   # over batches whose update was made

    @property
    def waiting(self) -> int:
        """The number of batches since the last update."""
        return self.passes_done // self.passes

    def forward(self, *inputs: Tensor) -> Tensor:
        """The network's logits in float32 or, for a float64 network, float64.

        Raises `UserError` if a BatchNorm gets a single number for each channel, as from one small image.
        """
        if self.passes_done == 0:
            self.batch_losses = torch.zeros_like(self.loss_sum)
            self.buffers = [buffer.clone() for buffer in self.model.buffers()] if self.skip_bad else []
        if isinstance(self.model, DistributedDataParallel):  # one all-reduce per update
            self.model.require_backward_grad_sync = self.passes_done + 1 == self.accumulate * self.passes
        try:
            with autocast(self.device, self.amp), self.casts.lent():
                logits = self.model(*inputs)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):   # PyTorch's words
                raise
            height, width = inputs[0].shape[-2:]
            raise UserError(f"one image of {height}×{width} px leaves a BatchNorm layer one number for each channel, "
                            "which has no variance: raise --batch-size or --img_size") from error
        return logits.float() if self.amp != "off" else logits

    def backward(self, loss: Tensor) -> bool:
        """Adds the gradient of a pass; after the last pass of `accumulate` batches it updates, and returns True."""
        self.batch_losses += loss.detach() / self.passes
        self.passes_done += 1
        last = self.passes_done == self.accumulate * self.passes
        loss = loss / (self.accumulate * self.passes) if self.accumulate * self.passes > 1 else loss
        (self.scaler.scale(loss) if self.scaler else loss).backward()
        if last:
            self.update()
        return last

    def update(self) -> None:
        """Steps optimizer and schedule with the accumulated gradients."""
        self.updating = True
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.loss_sum += self.batch_losses
        else:
            norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
            bad = (~torch.isfinite(norm)).float()
            self.bad_updates += bad
            leave_out = bad if self.skip_bad else (self.bad_updates > 0).float()
            fused: Any = self.optimizer
            fused.grad_scale, fused.found_inf = None, leave_out  # fused optimisers skip the update if `found_inf` is 1
            fused.step()
            self.loss_sum += torch.where(leave_out > 0, 0.0, self.batch_losses)
            for buffer, before in zip(self.model.buffers(), self.buffers, strict=bool(self.buffers)):
                buffer.copy_(torch.where(bad > 0, before, buffer))
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        self.passes_done = 0
        self.updating = False
