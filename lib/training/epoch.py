"""An epoch of training, and the validation after it. Batches come from a loader of `data`, which logs bad images."""
import gc
import itertools
from argparse import Namespace
from typing import Any

from torch import nn

import distributed
import utils
from lib.evaluation.generalized import all_metrics
from lib.evaluation.metrics import evaluate, warning_of_empty_predictions
from lib.losses import segmentation_loss
from lib.training.masked_pass import taught_loss
from lib.training.nonfinite import NonFiniteGuard
from lib.training.state import TrainingState
from lib.training.update_step import lack_of_memory
from transforms import network_inputs
from utils import log


class Interrupted(Exception):
    """A signal stopped the run, which is saved."""


def train_one_epoch(state: TrainingState, batches: Any, args: Namespace) -> dict[str, float]:
    """Trains from the state's progress to the end of the epoch, and returns the epoch's figures.

    A loss or gradient that is not finite on any process stops all processes before the update (`UserError`), or is
    skipped up to `--skip_nonfinite` times. After a signal the run is saved at the next update (`Interrupted`).
    """
    updater, progress, device = state.updater, state.progress, state.device
    updater.model.train()
    batches.batch_sampler.epoch, batches.batch_sampler.first = progress.epoch, progress.step
    updater.loss_sum.fill_(progress.loss_sum)
    guard = NonFiniteGuard(updater, progress, args.skip_nonfinite, batches.dataset)
    clock = progress.clock()
    for batch in utils.progress(batches, f"epoch {progress.epoch}"):
        inputs, target = network_inputs(batch, device), batch["target"].to(device, non_blocking=True).long()
        with lack_of_memory(updater), state.threads.step():
            logits = updater.forward(*inputs)
            updated = updater.backward(segmentation_loss(logits, target, args.loss))
            if state.disturb:
                updated = updater.backward(taught_loss(updater.forward(*state.disturb(*inputs)), logits))
            if updated and state.average:
                state.average.update(state.model)
        guard.unseen.append(batch["index"])
        progress.empty_masks += int((~batch["target"].numpy().any(axis=(1, 2))).sum())   # from the copy on the host
        progress.step += 1
        progress.seconds = clock()
        if not updated:
            continue
        interrupted = distributed.agree_to_stop()
        last = progress.step == len(batches)
        due = last or interrupted or state.save_is_due()
        if due or state.look_is_due():
            guard.check()
            progress.loss_sum = updater.loss_sum.item()
        if last or state.log_is_due():
            log(state.log_line())
            gc.collect()   # see utils.rare_garbage_collection
        if due and (interrupted or not last):
            state.save()
        if interrupted:
            raise Interrupted
    return {**state.epoch_figures(), "bad_images": sum(distributed.gather_objects(len(batches.problems)))}


def validate(state: TrainingState, batches: Any, model: nn.Module) -> dict[str, Any]:
    """Metrics on all sentences of the val split; each process evaluates a share and gets the whole result."""
    distributed.share_buffers(model)   # on CPUs running statistics differ between processes
    shown = utils.progress(batches, "val", lines=True)
    watched = itertools.takewhile(lambda _: not distributed.stop_requested(), shown)
    rows = distributed.gather_rows(evaluate(model, watched, state.device, state.args.amp)).cpu().numpy()
    if not len(rows):
        return {}
    if warning := warning_of_empty_predictions(rows[:, 1:]):
        log(warning)
    no_target = batches.dataset.no_target(rows[:, 0])
    if empty := int(((rows[:, 3] == 0) & ~no_target).sum()):
        log(f"{empty} of {len(rows)} validation samples have an empty mask: their IoU is 0 whatever is predicted")
    return all_metrics(rows[:, 1:], no_target, state.args.no_target_pixels)
