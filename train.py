"""Trains RMSIN or LAVT. One process or many: plain `python train.py`, `torchrun` or `torch.distributed.launch`."""
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

import utils
from args import get_parser
from bert import load_text_weights
from data import EvalSet, TrainSet, eval_loader, log_problems, train_loader
from lib.checkpoint import load_swin_weights, save_checkpoint
from lib.evaluation import compute_metrics, evaluate, format_metrics
from lib.losses import segmentation_loss
from lib.model import ReferringSegmenter
from lib.optimizer import freeze_text, make_optimizer
from lib.resume import Progress, choose_start, goes_on, refuse_changes, set_earlier_run_aside
from lib.segmentation import build, describe_model, model_settings
from lib.strict_load import load_weights
from refer.refer import REFER
from transforms import normalize
from utils import UserError, log


def make_loaders(args: Namespace, refer: REFER, tokenizer: Tokenizer, size_px: int) -> tuple[DataLoader, DataLoader]:
    """This process's loaders of the train split and of the val split."""
    train_set = TrainSet(refer, "train", tokenizer, size_px, args.seed, args.random_box_share, args.skip_bad_images)
    val_set = EvalSet(refer, "val", tokenizer, size_px, skip_bad_images=args.skip_bad_images,
                      one_sentence_seed=args.seed if args.published_validation else None)
    common = (args.batch_size, args.workers, args.pin_mem, utils.rank(), utils.world_size())
    train_batches = train_loader(train_set, *common)
    if not len(train_batches):
        raise UserError(f"the train split of {args.dataset} has {len(train_set)} refs, fewer than one batch of "
                        f"{args.batch_size} for each of {utils.world_size()} process(es): lower --batch-size")
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


def gradients_are_finite(model: nn.Module) -> bool:
    """Whether every gradient is finite. After the all-reduce, all processes get the same answer."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return math.isfinite(nn.utils.get_total_norm(gradients).item())


def refs_of(batches: DataLoader, indices: torch.Tensor) -> str:
    """The ref ids of a batch over all processes, for an error."""
    refs = [batches.dataset.refs[index]["ref_id"] for index in indices.tolist()]
    return ", ".join(str(ref) for share in utils.gather_objects(refs) for ref in share)


def train_one_epoch(model: nn.Module, batches: DataLoader, optimizer: torch.optim.Optimizer,
                    schedule: torch.optim.lr_scheduler.LambdaLR, device: torch.device, args: Namespace,
                    progress: Progress, save: Callable[[], None]) -> dict[str, float]:
    """The rest of an epoch from where `progress` stands, which moves along; returns the epoch's figures.

    A loss or gradient that is not finite on any process stops all of them before the update (`UserError`), or
    is skipped, up to `--skip_nonfinite` times. A signal ends it after the step, saved (`Interrupted`).
    """
    model.train()
    sampler = batches.batch_sampler
    sampler.epoch, sampler.first = progress.epoch, progress.step
    start, total = time.perf_counter() - progress.seconds, torch.tensor(progress.loss_sum, device=device)
    global_batch = args.batch_size * utils.world_size()
    bad_images: list[str] = []
    for batch in log_problems(utils.progress(batches, f"epoch {progress.epoch}"), bad_images):
        image, token_ids, token_mask, target = (batch[key].to(device, non_blocking=True)
                                                for key in ("image", "token_ids", "token_mask", "target"))
        before = [buffer.clone() for buffer in model.buffers()] if args.skip_nonfinite else []
        loss = segmentation_loss(model(normalize(image), token_ids, token_mask), target.long(), args.dice_weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if gradients_are_finite(model):
            optimizer.step()
            total += loss.detach()
        else:
            refuse_or_skip(progress, args.skip_nonfinite, refs_of(batches, batch["index"]))
            for buffer, value in zip(model.buffers(), before, strict=True):
                buffer.copy_(value)
        schedule.step()
        progress.step += 1
        progress.empty_masks += int((batch["target"].flatten(1).amax(1) == 0).sum())
        progress.seconds = time.perf_counter() - start
        if progress.step % args.print_freq == 0 or progress.step == len(batches):
            log(f"epoch {progress.epoch} [{progress.step}/{len(batches)}] loss {total.item() / progress.step:.4f} "
                f"lr {schedule.get_last_lr()[0]:.3g} {progress.step * global_batch / progress.seconds:.1f} images/s")
        interrupted = utils.agree_to_stop()
        if interrupted or (args.save_every and progress.step % args.save_every == 0):
            progress.loss_sum = total.item()
            save()
        if interrupted:
            raise Interrupted
    progress.loss_sum = total.item()
    return {"loss": progress.loss_sum / len(batches), "train_seconds": progress.seconds,
            "empty_masks": progress.empty_masks, "skipped": progress.skipped,
            "bad_images": sum(utils.gather_objects(len(bad_images))),
            "images_per_second": len(batches) * global_batch / max(progress.seconds, 1e-9)}


def refuse_or_skip(progress: Progress, tolerated: int, refs: str) -> None:
    """Counts a batch whose loss or gradient is not finite; raises `UserError` when there were too many."""
    progress.skipped += 1
    what = f"loss or gradient is not finite in epoch {progress.epoch}, iteration {progress.step}, on refs {refs}"
    if progress.skipped > tolerated:
        raise UserError(f"{what}; stopped before the update. Look at these refs, lower --lr, or go on from the last "
                        "checkpoint with --resume auto; --skip_nonfinite N leaves out up to N such batches")
    log(f"{what}; left out ({progress.skipped} of {tolerated} tolerated)")


def validate(model: ReferringSegmenter, batches: DataLoader, device: torch.device) -> dict[str, Any]:
    """Metrics on all sentences of the val split; every process works on its share and gets the whole result."""
    if utils.world_size() > 1:
        for buffer in model.buffers():  # running statistics of unsynchronised BatchNorm differ between processes
            dist.broadcast(buffer, src=0)
    readable = log_problems(utils.progress(batches, "val"), [])
    watched = itertools.takewhile(lambda _: not utils.stop_requested(), readable)
    rows = utils.gather_rows(evaluate(model, watched, device)).cpu().numpy()
    return compute_metrics(rows[:, 1], rows[:, 2]) if len(rows) else {}


def run(args: Namespace) -> None:
    """The whole training run; `main` says its user errors."""
    device = utils.init_processes(args.device, args.local_rank, args.timeout)
    utils.seed_everything(args.seed, args.deterministic)
    utils.watch_signals()
    output, model_id = Path(args.output_dir), args.model_id or args.model
    log_file = Path("models") / model_id / "log.jsonl"
    refer = REFER(args.refer_data_root, args.dataset, args.splitBy, args.published_masks)
    if utils.was_restarted():
        log("started again by the launcher")
    else:
        set_earlier_run_aside(args.resume, output, model_id)
    args.resume, resumed = choose_start(args.resume, output, model_id, utils.was_restarted())
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

    freeze_text(model, args.bert_layers, args.train_embeddings)
    wrapped = wrap(model.to(device), device)
    optimizer, schedule = make_optimizer(model, args.lr, args.weight_decay, args.epochs * len(train_batches),
                                         args.warmup_iters, args.amsgrad)
    progress = Progress()
    if goes_on(resumed):
        optimizer.load_state_dict(resumed["optimizer"])
        schedule.load_state_dict(resumed["lr_scheduler"])
        progress = Progress(**resumed["progress"])
        log(f"going on with epoch {progress.epoch}, iteration {progress.step}; best overall IoU so far "
            f"{progress.best_oIoU:.2f}")
        if utils.world_size() == resumed["world_size"]:
            utils.restore_generators(resumed["generators"][utils.rank()], device)
    else:
        if resumed:
            log(f"weights from {args.resume}; optimiser and schedule start anew, as the file has none that fit")
        utils.set_aside(log_file)

    def save(*kinds: str) -> None:
        """Writes the state of the run as model_KIND_ID.pth; every process takes part, the first one writes."""
        generators = utils.gather_objects(utils.generator_states(device))
        if utils.rank() == 0:
            checkpoint = {"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                          "lr_scheduler": schedule.state_dict(), "epoch": progress.epoch - (progress.step == 0),
                          "args": vars(args), "progress": progress.to_dict(), "world_size": utils.world_size(),
                          "generators": generators, **describe_model(config, tokenizer)}
            for kind in kinds or ("last",):
                save_checkpoint(output / f"model_{kind}_{model_id}.pth", checkpoint)

    while progress.epoch < args.epochs:
        learning_rate = schedule.get_last_lr()[0]
        figures = train_one_epoch(wrapped, train_batches, optimizer, schedule, device, args, progress, save)
        metrics = validate(model, val_batches, device)
        if utils.agree_to_stop():
            save()   # validation starts again when the run goes on
            raise Interrupted
        if not metrics:
            raise UserError("no image of the val split could be read; tools/check_dataset.py says what is wrong")
        log(format_metrics(metrics))
        utils.append_json_line(log_file, {
            "epoch": progress.epoch, "lr": learning_rate, **figures, "val": metrics,
            "peak_memory_mib": utils.peak_memory_mib(device)})
        is_best = metrics["oIoU"] > progress.best_oIoU
        progress.best_oIoU = max(progress.best_oIoU, metrics["oIoU"])
        progress.next_epoch()
        save(*(["last", "best"] if is_best else ["last"]))
    log(f"finished: best val overall IoU {progress.best_oIoU:.2f}, in {output / f'model_best_{model_id}.pth'}")
    utils.end_processes()


def main() -> None:
    args = get_parser().parse_args()
    with utils.user_errors("train.py"):
        try:
            run(args)
        except Interrupted:
            log("stopped by a signal, saved; --resume auto goes on")
            sys.exit(utils.EXIT_REQUEUE)


if __name__ == "__main__":
    main()
