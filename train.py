"""Trains RMSIN or LAVT. One process or many: plain `python train.py`, `torchrun` or `torch.distributed.launch`."""
import gc
import itertools
import math
import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import distributed
import utils
from args import get_parser
from bert import load_text_weights
from data import EvalSet, TrainSet, eval_loader, log_problems, train_loader
from lib.checkpoint import load_swin_weights, save_checkpoint
from lib.checkpoint.strict_loading import load_weights
from lib.evaluation.metrics import compute_metrics, evaluate, format_metrics
from lib.losses import segmentation_loss
from lib.model import ReferringSegmenter
from lib.segmentation import build, describe_model, model_settings
from lib.training.optimizer import freeze_text, make_optimizer
from lib.training.resume import Progress, choose_start, goes_on, refuse_changes, set_earlier_run_aside
from lib.training.run_record import RunRecord
from lib.training.update import Updater
from refer.refer import REFER
from transforms import normalize
from utils import UserError, log


def make_loaders(args: Namespace, refer: REFER, tokenizer: Tokenizer, size_px: int) -> tuple[DataLoader, DataLoader]:
    """This process's loaders of the train split and of the val split."""
    train_set = TrainSet(refer, "train", tokenizer, size_px, args.seed, args.random_box_share, args.skip_bad_images,
                         args.packed)
    val_set = EvalSet(refer, "val", tokenizer, size_px, skip_bad_images=args.skip_bad_images, packed=args.packed,
                      one_sentence_seed=args.seed if args.published_validation else None)
    common = (args.batch_size, args.workers, args.pin_mem, utils.rank(), utils.world_size())
    train_batches = train_loader(train_set, *common, accumulate=args.accumulate)
    if not len(train_batches):
        raise UserError(f"the train split of {args.dataset} has {len(train_set)} refs, fewer than an update of "
                        f"{args.accumulate} batch(es) of {args.batch_size} for each of {utils.world_size()} "
                        "process(es): lower --batch-size or --accumulate")
    return train_batches, eval_loader(val_set, *common)


def load_pretrained(model: ReferringSegmenter, args: Namespace) -> None:
    """Swin's and BERT's published weights, as far as the flags name any."""
    if args.pretrained_swin_weights:
        log(load_swin_weights(model.backbone, args.pretrained_swin_weights))
    else:
        log(f"Swin starts from random weights: no --pretrained_swin_weights for --swin_type {args.swin_type}")
    loaded = load_text_weights(model.text_encoder, args.ck_bert)
    log(f"BERT starts from {args.ck_bert}" if loaded else
        f"BERT starts from random weights: {args.ck_bert} has a configuration only")


def wrap(model: ReferringSegmenter, device: torch.device) -> nn.Module:
    """The model as the training step calls it: with several processes, synchronised."""
    if utils.world_size() == 1:
        return model
    # The router's depthwise weights have an axis of length 1, whose stride means nothing.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    if device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return DistributedDataParallel(model, device_ids=[device.index], gradient_as_bucket_view=True,
                                       broadcast_buffers=False)
    log("BatchNorm is not synchronised: SyncBatchNorm needs GPUs; each CPU process normalises its own batch")
    return DistributedDataParallel(model, gradient_as_bucket_view=True, broadcast_buffers=False)


class Interrupted(Exception):
    """A signal asked the run to stop; it was saved."""


def refs_of(batches: DataLoader, indices: list[torch.Tensor]) -> str:
    """The ref ids of some batches over all processes, for an error."""
    refs = [batches.dataset.refs[index]["ref_id"] for part in indices for index in part.tolist()]
    return ", ".join(str(ref) for share in distributed.gather_objects(refs) for ref in share)


def train_one_epoch(updater: Updater, batches: DataLoader, args: Namespace, progress: Progress,
                    save: Callable[[], None]) -> dict[str, float]:
    """The rest of an epoch from where `progress` stands, which moves along; returns the epoch's figures.

    A loss or gradient that is not finite on any process stops all of them before the update (`UserError`), or
    is skipped, up to `--skip_nonfinite` times. A signal ends it after the update at hand, saved (`Interrupted`).
    """
    updater.model.train()
    device = updater.device
    sampler = batches.batch_sampler
    sampler.epoch, sampler.first = progress.epoch, progress.step
    start = time.perf_counter() - progress.seconds
    updater.loss_sum.fill_(progress.loss_sum)
    global_batch = args.batch_size * utils.world_size()
    look_every = args.print_freq if device.type == "cuda" else 1   # at the losses: on a GPU this waits for it
    bad_images: list[str] = []
    unseen: list[torch.Tensor] = []   # samples of batches whose losses were not looked at
    for batch in log_problems(utils.progress(batches, f"epoch {progress.epoch}"), bad_images):
        image, token_ids, token_mask, target = (batch[key].to(device, non_blocking=True)
                                                for key in ("image", "token_ids", "token_mask", "target"))
        logits = updater.forward(normalize(image), token_ids, token_mask)
        updated = updater.backward(segmentation_loss(logits, target.long(), args.dice_weight))
        unseen.append(batch["index"])
        progress.empty_masks += int((batch["target"].flatten(1).amax(1) == 0).sum())
        progress.step += 1
        progress.seconds = time.perf_counter() - start
        if not updated:
            continue
        interrupted = distributed.agree_to_stop()
        last = progress.step == len(batches)
        due = last or interrupted or (args.save_every and progress.step % args.save_every < args.accumulate)
        if due or progress.step // args.accumulate % look_every == 0:
            refuse_or_skip(updater, progress, args.skip_nonfinite, unseen, batches)
            unseen.clear()
            progress.loss_sum = updater.loss_sum.item()
        if last or progress.step // args.accumulate % args.print_freq == 0:
            log(f"epoch {progress.epoch} [{progress.step}/{len(batches)}] loss {progress.loss_sum / progress.step:.4f} "
                f"lr {updater.schedule.get_last_lr()[0]:.3g} "
                f"{progress.step * global_batch / progress.seconds:.1f} images/s")
            gc.collect()   # what the last steps left; see utils.rare_garbage_collection
        if due and (interrupted or not last):
            save()
        if interrupted:
            raise Interrupted
    return {"loss": progress.loss_sum / len(batches), "train_seconds": progress.seconds,
            "empty_masks": progress.empty_masks, "skipped": progress.skipped,
            "bad_images": sum(distributed.gather_objects(len(bad_images))),
            "images_per_second": len(batches) * global_batch / max(progress.seconds, 1e-9)}


def refuse_or_skip(updater: Updater, progress: Progress, tolerated: int, unseen: list[torch.Tensor],
                   batches: DataLoader) -> None:
    """Counts updates left out for a gradient that was not finite; raises `UserError` when there were too many."""
    bad = int(updater.bad_updates.item())
    if updater.scaler and distributed.any_process(not math.isfinite(updater.loss_sum.item())):
        bad = tolerated + 1   # fp16's gradients may overflow, a loss may not
    if bad == 0:
        return
    updater.bad_updates.zero_()
    progress.skipped += bad
    what = (f"loss or gradient is not finite in epoch {progress.epoch}, iteration {progress.step - len(unseen)}"
            f"{f' to {progress.step - 1}' if len(unseen) > 1 else ''}, on refs {refs_of(batches, unseen)}")
    if progress.skipped > tolerated:
        raise UserError(f"{what}; stopped before the update. Look at these refs, lower --lr, or go on from the last "
                        "checkpoint with --resume auto; --skip_nonfinite N leaves out up to N such batches")
    log(f"{what}; left out ({progress.skipped} of {tolerated} tolerated)")


def validate(model: ReferringSegmenter, batches: DataLoader, device: torch.device, amp: str) -> dict[str, Any]:
    """Metrics on all sentences of the val split; every process works on its share and gets the whole result."""
    if utils.world_size() > 1:
        for buffer in model.buffers():  # running statistics of unsynchronised BatchNorm differ between processes
            dist.broadcast(buffer, src=0)
    readable = log_problems(utils.progress(batches, "val"), [])
    watched = itertools.takewhile(lambda _: not distributed.stop_requested(), readable)
    rows = distributed.gather_rows(evaluate(model, watched, device, amp)).cpu().numpy()
    return compute_metrics(rows[:, 1:]) if len(rows) else {}


def run(args: Namespace) -> None:
    """The whole training run; `main` says its user errors."""
    device = distributed.init_processes(args.device, args.local_rank, args.timeout)
    utils.set_up_cpu(device)
    utils.seed_everything(args.seed, args.deterministic)
    distributed.watch_signals()
    output, model_id = Path(args.output_dir), args.model_id
    record = RunRecord(Path("models") / model_id, args, device, args.tensorboard, args.wandb)
    refer = REFER(args.refer_data_root, args.dataset, args.splitBy, args.published_masks)
    if distributed.was_restarted():
        log("started again by the launcher")
    else:
        set_earlier_run_aside(args.resume, output, model_id)
    args.resume, resumed = choose_start(args.resume, output, model_id, distributed.was_restarted())
    if goes_on(resumed) and not args.allow_changed_flags:
        refuse_changes(args, resumed, args.resume, utils.world_size())
    config, tokenizer = model_settings(args, resumed)
    model = build(config)
    if resumed:
        load_weights(model, resumed, args.resume)
    else:
        load_pretrained(model, args)
    train_batches, val_batches = make_loaders(args, refer, tokenizer, config.img_size)
    log(f"{args.model} on {args.dataset}: {len(train_batches.dataset)} training refs, {len(val_batches.dataset)} "
        f"validation sentences; {utils.world_size()} process(es) on {device.type}, seed {args.seed}")

    freeze_text(model, args.bert_layers, args.train_embeddings, args.bert_dropout)
    model.backbone.recompute_blocks = args.checkpoint_activations
    if args.compile:
        model.backbone.compile_blocks()
    wrapped = wrap(model.to(device), device)
    optimizer, schedule = make_optimizer(
        model, args.lr, args.weight_decay, args.epochs * len(train_batches) // args.accumulate, args.warmup_iters,
        args.amsgrad)
    updater = Updater(wrapped, optimizer, schedule, device, args.amp, args.accumulate, args.skip_nonfinite > 0)
    progress = Progress()
    if goes_on(resumed):
        optimizer.load_state_dict(resumed["optimizer"])
        schedule.load_state_dict(resumed["lr_scheduler"])
        if updater.scaler and resumed.get("scaler"):
            updater.scaler.load_state_dict(resumed["scaler"])
        progress = Progress(**resumed["progress"])
        log(f"going on with epoch {progress.epoch}, iteration {progress.step}; best overall IoU so far "
            f"{progress.best_oIoU:.2f}")
        if utils.world_size() == resumed["world_size"]:
            utils.restore_generators(resumed["generators"][utils.rank()], device)
    elif resumed:
        log(f"weights from {args.resume}; optimiser and schedule start anew, as the file has none that fit")

    def save(*kinds: str) -> None:
        """Writes the state of the run as model_KIND_ID.pth; every process takes part, the first one writes."""
        generators = distributed.gather_objects(utils.generator_states(device))
        if utils.rank() == 0:
            checkpoint = {"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                          "lr_scheduler": schedule.state_dict(), "epoch": progress.epoch - (progress.step == 0),
                          "args": vars(args), "progress": progress.to_dict(), "world_size": utils.world_size(),
                          "generators": generators, "scaler": updater.scaler.state_dict() if updater.scaler else {},
                          **describe_model(config, tokenizer)}
            for kind in kinds or ("last",):
                save_checkpoint(output / f"model_{kind}_{model_id}.pth", checkpoint)

    with record.begin(goes_on(resumed), progress.epoch, val_batches.dataset), utils.rare_garbage_collection():
        while progress.epoch < args.epochs:
            learning_rate = schedule.get_last_lr()[0]
            figures = train_one_epoch(updater, train_batches, args, progress, save)
            metrics = validate(model, val_batches, device, args.amp)
            if distributed.agree_to_stop():
                save()   # validation starts again when the run goes on
                raise Interrupted
            if not metrics:
                raise UserError("no image of the val split could be read; tools/check_dataset.py says what is wrong")
            log(format_metrics(metrics))
            record.epoch({"epoch": progress.epoch, "lr": learning_rate, **figures, "val": metrics,
                          "peak_memory_mib": utils.peak_memory_mib(device)}, model)
            is_best = metrics["oIoU"] > progress.best_oIoU
            progress.best_oIoU = max(progress.best_oIoU, metrics["oIoU"])
            progress.next_epoch()
            save(*(["last", "best"] if is_best else ["last"]))
    log(f"finished: best val overall IoU {progress.best_oIoU:.2f}, in {output / f'model_best_{model_id}.pth'}")
    distributed.end_processes()


def main() -> None:
    args = get_parser().parse_args()
    with distributed.user_errors("train.py"):
        try:
            run(args)
        except Interrupted:
            log("stopped by a signal, saved; --resume auto goes on")
            sys.exit(distributed.EXIT_REQUEUE)


if __name__ == "__main__":
    main()
