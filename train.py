"""Trains RMSIN or LAVT. One process or many: plain `python train.py`, `torchrun` or `torch.distributed.launch`."""
import math
import time
from argparse import Namespace
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
from data import EvalSet, TrainSet, eval_loader, train_loader
from lib.checkpoint import load_swin_weights, read_checkpoint, save_checkpoint
from lib.evaluation import compute_metrics, evaluate, format_metrics
from lib.losses import segmentation_loss
from lib.model import ReferringSegmenter
from lib.official import is_official
from lib.segmentation import ModelConfig, build, describe_model, model_settings
from lib.strict_load import load_weights
from refer.refer import REFER
from transforms import normalize
from utils import UserError, log


def make_loaders(args: Namespace, refer: REFER, tokenizer: Tokenizer, size_px: int) -> tuple[DataLoader, DataLoader]:
    """This process's loaders of the train split and of the val split."""
    train_set = TrainSet(refer, "train", tokenizer, size_px, args.seed, args.random_box_share)
    val_set = EvalSet(refer, "val", tokenizer, size_px,
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


def freeze_text(model: ReferringSegmenter, layers: int, embeddings: bool) -> None:
    """Lets the first `layers` of BERT train, and the embeddings if asked for; published: 10 layers, not these."""
    bert = model.text_encoder.bert
    bert.requires_grad_(False)
    for layer in bert.encoder.layer[:layers]:
        layer.requires_grad_(True)
    bert.embeddings.requires_grad_(embeddings)


def parameter_groups(model: ReferringSegmenter) -> list[dict[str, Any]]:
    """AdamW's groups of trained parameters: backbone without decay, backbone (CIM included), decoder, text encoder."""
    exempt = model.backbone.no_weight_decay()
    plain, decayed = [], []
    for name, parameter in model.backbone.named_parameters():
        (plain if name in exempt else decayed).append(parameter)
    if model.cross_scale is not None:
        decayed += model.cross_scale.parameters()
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed},
              {"params": model.decoder.parameters()}, {"params": model.text_encoder.parameters()}]
    return [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in groups]


def learning_rate_factor(iteration: int, total: int, warmup: int) -> float:
    """(1 − iteration / total)^0.9, times a linear rise over the first `warmup` iterations."""
    rise = min(1.0, (iteration + 1) / warmup) if warmup else 1.0
    return rise * (1 - min(iteration, total) / total) ** 0.9


def make_optimizer(model: ReferringSegmenter, args: Namespace,
                   total_iterations: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW and its schedule, to be stepped every iteration."""
    optimizer = torch.optim.AdamW(parameter_groups(model), args.lr, weight_decay=args.weight_decay,
                                  amsgrad=args.amsgrad)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda iteration: learning_rate_factor(iteration, total_iterations, args.warmup_iters))
    return optimizer, schedule


def wrap(model: ReferringSegmenter, device: torch.device) -> nn.Module:
    """The model as the training step calls it: with several processes, synchronised."""
    if utils.world_size() == 1:
        return model
    if device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return DistributedDataParallel(model, device_ids=[device.index], gradient_as_bucket_view=True)
    log("BatchNorm is not synchronised: SyncBatchNorm needs GPUs; each CPU process normalises its own batch")
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


def train_one_epoch(model: nn.Module, batches: DataLoader, optimizer: torch.optim.Optimizer,
                    schedule: torch.optim.lr_scheduler.LambdaLR, device: torch.device, epoch: int,
                    args: Namespace) -> dict[str, float]:
    """One pass over the training set; returns mean loss, seconds, images per second, samples without an object."""
    model.train()
    batches.batch_sampler.epoch = epoch
    start, total, empty = time.perf_counter(), torch.zeros((), device=device), 0
    for step, batch in enumerate(utils.progress(batches, f"epoch {epoch}"), start=1):
        empty += int((batch["target"].flatten(1).amax(1) == 0).sum())
        image, token_ids, token_mask, target = (batch[key].to(device, non_blocking=True)
                                                for key in ("image", "token_ids", "token_mask", "target"))
        logits = model(normalize(image), token_ids, token_mask)
        loss = segmentation_loss(logits, target.long(), args.dice_weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.detach()
        if step % args.print_freq == 0 or step == len(batches):
            mean = total.item() / step
            if not math.isfinite(mean):
                raise UserError(f"the loss is {mean} in epoch {epoch}, before iteration {step}: lower --lr, or "
                                "go on from the last checkpoint with --resume")
            rate = step * args.batch_size * utils.world_size() / (time.perf_counter() - start)
            log(f"epoch {epoch} [{step}/{len(batches)}] loss {mean:.4f} lr {schedule.get_last_lr()[0]:.3g} "
                f"{rate:.1f} images/s")
    seconds = time.perf_counter() - start
    return {"loss": mean, "train_seconds": seconds, "empty_masks": empty,
            "images_per_second": len(batches) * args.batch_size * utils.world_size() / seconds}


def validate(model: ReferringSegmenter, batches: DataLoader, device: torch.device) -> dict[str, Any]:
    """Metrics on all sentences of the val split; every process works on its share and gets the whole result."""
    if utils.world_size() > 1:
        for buffer in model.buffers():  # running statistics of unsynchronised BatchNorm differ between processes
            dist.broadcast(buffer, src=0)
    rows = utils.gather_rows(evaluate(model, utils.progress(batches, "val"), device)).cpu().numpy()
    return compute_metrics(rows[:, 1], rows[:, 2])


def make_checkpoint(args: Namespace, config: ModelConfig, tokenizer: Tokenizer, model: ReferringSegmenter,
                    optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LambdaLR, epoch: int,
                    best: float) -> dict[str, Any]:
    """All that test.py needs to evaluate the model and train.py to go on, after `epoch`."""
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "lr_scheduler": schedule.state_dict(),
            "epoch": epoch, "args": vars(args), "best_oIoU": best, **describe_model(config, tokenizer)}


def run(args: Namespace) -> None:
    """The whole training run; `main` says its user errors."""
    device = utils.init_processes(args.device, args.local_rank)
    utils.seed_everything(args.seed, args.deterministic)
    refer = REFER(args.refer_data_root, args.dataset, args.splitBy, args.published_masks)
    resumed = read_checkpoint(args.resume) if args.resume else {}
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
    optimizer, schedule = make_optimizer(model, args, args.epochs * len(train_batches))
    first_epoch, best = 0, -1.0
    if resumed and (is_official(resumed) or "optimizer" not in resumed):
        log(f"weights from {args.resume}; optimiser and schedule start anew, as the file has none that fit")
    elif resumed:
        optimizer.load_state_dict(resumed["optimizer"])
        schedule.load_state_dict(resumed["lr_scheduler"])
        first_epoch, best = resumed["epoch"] + 1, resumed["best_oIoU"]
        log(f"going on from {args.resume} with epoch {first_epoch}, best overall IoU so far {best:.2f}")

    output, model_id = Path(args.output_dir), args.model_id or args.model
    for epoch in range(first_epoch, args.epochs):
        learning_rate = schedule.get_last_lr()[0]
        figures = train_one_epoch(wrapped, train_batches, optimizer, schedule, device, epoch, args)
        metrics = validate(model, val_batches, device)
        log(format_metrics(metrics))
        utils.append_json_line(Path("models") / model_id / "log.jsonl", {
            "epoch": epoch, "lr": learning_rate, **figures, "val": metrics,
            "peak_memory_mib": utils.peak_memory_mib(device)})
        is_best, best = metrics["oIoU"] > best, max(best, metrics["oIoU"])
        if utils.rank() == 0:
            checkpoint = make_checkpoint(args, config, tokenizer, model, optimizer, schedule, epoch, best)
            save_checkpoint(output / f"model_last_{model_id}.pth", checkpoint)
            if is_best:
                save_checkpoint(output / f"model_best_{model_id}.pth", checkpoint)
    log(f"finished: best val overall IoU {best:.2f}, in {output / f'model_best_{model_id}.pth'}")
    utils.end_processes()


def main() -> None:
    args = get_parser().parse_args()
    with utils.user_errors("train.py"):
        run(args)


if __name__ == "__main__":
    main()
